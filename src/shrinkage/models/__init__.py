"""The networks of the papers, and any other by ``package.module:factory``."""

from shrinkage.models.build import MODELS as MODELS
from shrinkage.models.build import Factory as Factory
from shrinkage.models.build import Task as Task
from shrinkage.models.build import build as build
from shrinkage.models.build import default_model as default_model

"""The networks of the papers, and any other by ``package.module:factory``."""

from shrinkage.models.registry import MODELS as MODELS
from shrinkage.models.registry import Factory as Factory
from shrinkage.models.registry import Task as Task
from shrinkage.models.registry import build as build
from shrinkage.models.registry import default_model as default_model

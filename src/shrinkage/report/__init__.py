"""A run as one page to look at: what is drawn is gathered by :func:`gather`, drawn by :func:`page`."""

from shrinkage.report.figures import Figures as Figures
from shrinkage.report.figures import gather as gather
from shrinkage.report.page import Headline as Headline
from shrinkage.report.page import Page as Page
from shrinkage.report.page import page as page

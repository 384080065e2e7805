"""A spec for other systems: objects of Kubernetes, other gateways' configurations.

Each target is one pure function from facts to documents. What a target cannot express is refused
by name, all at once, unless somebody says that it may be lost.
"""

from headrace.deploy.argo_rollouts import ArgoOptions, argo_rollouts
from headrace.deploy.aws_apigateway import AwsOptions, aws_apigateway
from headrace.deploy.envoy import EnvoyOptions, envoy
from headrace.deploy.export import Document, Export, Format, Place, files_of, text_of
from headrace.deploy.facts import Artifact, Facts, Observed, Share, read_facts
from headrace.deploy.features import Cell, Feature, Loss, NotExpressibleError, Outcome, Target
from headrace.deploy.gateway_api import GatewayApiOptions, gateway_api
from headrace.deploy.kong import KongOptions, kong
from headrace.deploy.kserve import KserveOptions, kserve
from headrace.deploy.pods import PodOptions
from headrace.deploy.table import TABLE

__all__ = [
    "TABLE",
    "ArgoOptions",
    "Artifact",
    "AwsOptions",
    "Cell",
    "Document",
    "EnvoyOptions",
    "Export",
    "Facts",
    "Feature",
    "Format",
    "GatewayApiOptions",
    "KongOptions",
    "KserveOptions",
    "Loss",
    "NotExpressibleError",
    "Observed",
    "Outcome",
    "Place",
    "PodOptions",
    "Share",
    "Target",
    "argo_rollouts",
    "aws_apigateway",
    "envoy",
    "files_of",
    "gateway_api",
    "kong",
    "kserve",
    "read_facts",
    "text_of",
]

"""Export of a spec to Kubernetes and to other gateways. Imports `control` and below.

Each target is one pure function from facts to documents. Settings that a target cannot express are
reported all at once, by name, and refused unless their loss is allowed.
"""

from headrace.deploy.argo_rollouts import ArgoOptions, argo_rollouts
from headrace.deploy.aws_apigateway import AwsOptions, aws_apigateway
from headrace.deploy.envoy import EnvoyOptions, envoy
from headrace.deploy.export import (
    ClusterTarget,
    DocumentFormat,
    Export,
    ExportDocument,
    files_of,
    text_of,
)
from headrace.deploy.facts import Artifact, ExportFacts, LiveEndpoint, VersionShare, read_facts
from headrace.deploy.features import (
    ExportOutcome,
    ExportTarget,
    FeatureSupport,
    Loss,
    NotExpressibleError,
    SpecFeature,
)
from headrace.deploy.gateway_api import GatewayApiOptions, gateway_api
from headrace.deploy.kong import KongOptions, kong
from headrace.deploy.kserve import KserveOptions, kserve, kserve_runtime
from headrace.deploy.pods import PodOptions
from headrace.deploy.table import TABLE

__all__ = [
    "TABLE",
    "ArgoOptions",
    "Artifact",
    "AwsOptions",
    "ClusterTarget",
    "DocumentFormat",
    "EnvoyOptions",
    "Export",
    "ExportDocument",
    "ExportFacts",
    "ExportOutcome",
    "ExportTarget",
    "FeatureSupport",
    "GatewayApiOptions",
    "KongOptions",
    "KserveOptions",
    "LiveEndpoint",
    "Loss",
    "NotExpressibleError",
    "PodOptions",
    "SpecFeature",
    "VersionShare",
    "argo_rollouts",
    "aws_apigateway",
    "envoy",
    "files_of",
    "gateway_api",
    "kong",
    "kserve",
    "kserve_runtime",
    "read_facts",
    "text_of",
]

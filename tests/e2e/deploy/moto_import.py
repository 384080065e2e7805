"""Run by the Python that has moto: import an API as Amazon would, and print what it became.

Arguments: `http` or `rest`, the OpenAPI document (JSON), the stage's template (JSON).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
from moto import mock_aws
from openapi_spec_validator import validate


def main(kind: str, document: str, template: str) -> dict[str, Any]:
    text = Path(document).read_text(encoding="utf-8")
    validate(json.loads(text))
    with mock_aws():
        stack = boto3.client("cloudformation")
        stage = Path(template).read_text(encoding="utf-8")
        stack.validate_template(TemplateBody=stage)
        return _http(text) if kind == "http" else _rest(text)


def _http(text: str) -> dict[str, Any]:
    client = boto3.client("apigatewayv2")
    # moto has no `import_api`; importing over an empty API is the same.
    made = client.create_api(Name="empty", ProtocolType="HTTP")
    api = client.reimport_api(ApiId=made["ApiId"], Body=text, FailOnWarnings=True)
    routes = client.get_routes(ApiId=api["ApiId"])["Items"]
    found = {item["IntegrationId"]: item for item in _integrations(client, api["ApiId"])}
    return {
        "name": api["Name"],
        "routes": {
            route["RouteKey"]: found[route["Target"].partition("/")[2]].get("IntegrationUri")
            for route in routes
        },
    }


def _integrations(client: Any, api_id: str) -> list[dict[str, Any]]:  # boto3 has no types
    items: list[dict[str, Any]] = client.get_integrations(ApiId=api_id)["Items"]
    return items


def _rest(text: str) -> dict[str, Any]:
    client = boto3.client("apigateway")
    api = client.import_rest_api(body=text.encode(), failOnWarnings=True)
    routes = {}
    for resource in client.get_resources(restApiId=api["id"], limit=500)["items"]:
        for method in resource.get("resourceMethods") or {}:
            integration = client.get_integration(
                restApiId=api["id"], resourceId=resource["id"], httpMethod=method
            )
            routes[f"{method} {resource['path']}"] = integration.get("uri")
    return {"name": api["name"], "routes": routes}


if __name__ == "__main__":
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    json.dump(main(*sys.argv[1:]), sys.stdout)

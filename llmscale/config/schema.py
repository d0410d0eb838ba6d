"""The config's JSON schema, by which editors complete and check YAML files."""

from typing import Any

from llmscale.config.root import RunConfig


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a whole run config; every field has a description.

    It is what a file may hold. What depends on several settings at once is not in it.
    """
    schema = RunConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for field in section.get("properties", {}).values():
            if "description" not in field and "$ref" in field:
                # pydantic leaves it out where it is the section's own.
                field["description"] = schema["$defs"][field["$ref"].rpartition("/")[2]]["description"]
            field["description"] = " ".join(field["description"].split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

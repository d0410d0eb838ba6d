"""The config's JSON schema, by which editors complete and check YAML files."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from data_pipeline.base.section import descriptions
from llmscale.config.root import RunConfig


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a whole run config; every field has a description.

    It is what a file may hold. What depends on several settings at once is not in it.
    """
    schema = RunConfig.model_json_schema(schema_generator=_Described)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Described(GenerateJsonSchema):
    def model_schema(self, schema: Any) -> JsonSchemaValue:
        section = super().model_schema(schema)
        for name, text in descriptions(schema["cls"]).items():
            section["properties"][name]["description"] = " ".join(text.split())
        return section

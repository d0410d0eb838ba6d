"""The config of a run: pydantic sections, loading, identity. Imports neither torch nor anything that needs it."""

from llmscale.config.directory import resolve_directory
from llmscale.config.identity import flatten, identity, identity_digest, require_same_identity
from llmscale.config.load import dump_config, known_keys, load_config, parse_config
from llmscale.config.model import ModelConfig
from llmscale.config.root import RunConfig
from llmscale.config.shell import override_word

__all__ = [
    "ModelConfig",
    "RunConfig",
    "dump_config",
    "flatten",
    "identity",
    "identity_digest",
    "known_keys",
    "load_config",
    "override_word",
    "parse_config",
    "require_same_identity",
    "resolve_directory",
]

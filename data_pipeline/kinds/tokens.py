"""Token ids in `.bin` and `.idx` files."""

from data_pipeline.kinds.kind import SourceKind

KIND = SourceKind(
    description="prefixes of `.bin` and `.idx` files, as `llmscale data prepare`, Megatron-LM and GPT-NeoX write them",
    has_fields=False,
    is_tokenised=True,
    endings=(".idx", ".bin"),
)

"""Training and moving single rows of an embedding table: an overlay on a frozen table, several sets, adapter files."""

from .adapter_file import load_adapter, save_adapter, save_rows_adapter
from .adapter_hub import push_adapter
from .attach import attach_rows
from .attachment import attached_model, get_output_rows, get_rows, has_rows, output_role
from .distributed import gather_rows, replicate_rows
from .merge import detach_rows, merge_rows
from .new_token_rows import TokenInit
from .new_tokens import add_tokens
from .overlay import RowEmbedding
from .sets import add_rows, mixed_rows, remove_rows, row_sets, use_rows
from .tables import embedding_table, is_tied
from .token_ids import TokenIds, active_token_ids, check_token_ids
from .transfer import transfer_rows
from .untie import untie_output

__all__ = [
    "RowEmbedding",
    "TokenIds",
    "TokenInit",
    "active_token_ids",
    "add_rows",
    "add_tokens",
    "attach_rows",
    "attached_model",
    "check_token_ids",
    "detach_rows",
    "embedding_table",
    "gather_rows",
    "get_output_rows",
    "get_rows",
    "has_rows",
    "is_tied",
    "load_adapter",
    "merge_rows",
    "mixed_rows",
    "output_role",
    "push_adapter",
    "remove_rows",
    "replicate_rows",
    "row_sets",
    "save_adapter",
    "save_rows_adapter",
    "transfer_rows",
    "untie_output",
    "use_rows",
]

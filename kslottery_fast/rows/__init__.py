"""Training and moving single rows of an embedding table: an overlay on a frozen table, several sets, adapter files."""

from .adapter_file import load_adapter, save_adapter, save_rows_adapter
from .attach import attach_rows, detach_rows, merge_rows, untie_output
from .attachment import attached_model, get_output_rows, get_rows, has_rows, output_role
from .distributed import gather_rows, replicate_rows
from .overlay import RowEmbedding
from .sets import add_rows, mixed_rows, remove_rows, row_sets, use_rows
from .tables import embedding_table, is_tied
from .token_ids import TokenIds, active_token_ids, check_token_ids
from .transfer import transfer_rows

__all__ = [
    "RowEmbedding",
    "TokenIds",
    "active_token_ids",
    "add_rows",
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
    "remove_rows",
    "replicate_rows",
    "row_sets",
    "save_adapter",
    "save_rows_adapter",
    "transfer_rows",
    "untie_output",
    "use_rows",
]

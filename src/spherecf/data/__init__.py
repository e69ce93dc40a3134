"""Face images and pair lists in the field's usual formats: one interface, checked input, no silent skips."""

from spherecf.data.degradations import (
    RECIPES as RECIPES,
    Degradation,
    DegradationRecipe,
    View,
    training_views,
)
from spherecf.data.dumps import read_features
from spherecf.data.folder import IdentityFolder, orl_faces
from spherecf.data.formats import SyntheticImages, describe as describe, open_pairs, open_source
from spherecf.data.ijb import (
    IjbMeta,
    TemplateList,
    TemplatePairs,
    read_ijb,
    write_ijb,
)
from spherecf.data.image import (
    ImageError,
    decode_image as decode_image,
    encode_image as encode_image,
    sharpness,
)
from spherecf.data.list import ListFile
from spherecf.data.pair_table import read_cfp_pairs, read_pair_table
from spherecf.data.pairbin import PairBin
from spherecf.data.pairs import PairList, draw_pairs as draw_pairs, read_lfw_pairs
from spherecf.data.records import RecordFile, write_index
from spherecf.data.source import (
    ImageBatch as ImageBatch,
    ImageSource,
    Skipped as Skipped,
    Subset as Subset,
    ViewRequest as ViewRequest,
    batch_bytes as batch_bytes,
    iter_images,
    load_batch as load_batch,
    load_batches,
    split_identities,
)
from spherecf.data.text import Keys as Keys, read_groups as read_groups, read_keys as read_keys
from spherecf.data.writers import write_folder, write_list, write_pair_bin, write_records

# Names imported `as` themselves are used by other sub-packages; they are not part of the public interface.
__all__ = [
    "Degradation",
    "DegradationRecipe",
    "IdentityFolder",
    "IjbMeta",
    "ImageError",
    "ImageSource",
    "ListFile",
    "PairBin",
    "PairList",
    "RecordFile",
    "SyntheticImages",
    "TemplateList",
    "TemplatePairs",
    "View",
    "iter_images",
    "load_batches",
    "open_pairs",
    "open_source",
    "orl_faces",
    "read_cfp_pairs",
    "read_features",
    "read_ijb",
    "read_lfw_pairs",
    "read_pair_table",
    "sharpness",
    "split_identities",
    "training_views",
    "write_folder",
    "write_ijb",
    "write_index",
    "write_list",
    "write_pair_bin",
    "write_records",
]

"""Images and pairs from every layout the field uses: one interface, checked input, no silent skips."""

from spherecf.data.degradations import (
    KINDS,
    RECIPES,
    Degradation,
    DegradationRecipe,
    Degraded,
    View,
    training_views,
)
from spherecf.data.dumps import read_features
from spherecf.data.folder import IdentityFolder, orl_faces
from spherecf.data.formats import describe, open_pairs, open_source
from spherecf.data.ijb import IjbMeta, TemplateList, TemplatePairs, read_ijb, write_ijb
from spherecf.data.image import ImageError, decode_image, encode_image, image_suffix, sharpness
from spherecf.data.keys import Keys, read_keys
from spherecf.data.list import ListFile
from spherecf.data.pair_table import read_cfp_pairs, read_pair_table
from spherecf.data.pairbin import PairBin
from spherecf.data.pairs import PairList, draw_pairs, read_lfw_pairs
from spherecf.data.records import RecordFile, write_index
from spherecf.data.source import (
    ImageBatch,
    ImageSource,
    Skipped,
    Subset,
    iter_images,
    load_batches,
    split_identities,
)
from spherecf.data.synthetic import SyntheticImages
from spherecf.data.text import Groups, read_groups
from spherecf.data.writers import write_folder, write_list, write_pair_bin, write_records

__all__ = [
    "KINDS",
    "RECIPES",
    "Degradation",
    "Degraded",
    "TemplateList",
    "Groups",
    "IdentityFolder",
    "IjbMeta",
    "ImageBatch",
    "ImageError",
    "ImageSource",
    "Keys",
    "ListFile",
    "PairBin",
    "PairList",
    "DegradationRecipe",
    "RecordFile",
    "Skipped",
    "Subset",
    "SyntheticImages",
    "TemplatePairs",
    "View",
    "decode_image",
    "describe",
    "draw_pairs",
    "encode_image",
    "image_suffix",
    "iter_images",
    "load_batches",
    "open_pairs",
    "open_source",
    "orl_faces",
    "read_cfp_pairs",
    "read_features",
    "read_groups",
    "read_ijb",
    "read_keys",
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

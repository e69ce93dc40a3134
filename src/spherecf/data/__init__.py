"""Images and pairs from every layout the field uses: one interface, checked input, no silent skips."""

from spherecf.data._degradations import KINDS, RECIPES, Degradation, Degraded, Recipe
from spherecf.data._describe import describe
from spherecf.data._draw import draw_pairs
from spherecf.data._dumps import read_features
from spherecf.data._folder import IdentityFolder
from spherecf.data._groups import Groups, read_groups
from spherecf.data._ijb import Enrolled, IjbMeta, TemplatePairs
from spherecf.data._ijb_files import read_ijb, write_ijb
from spherecf.data._image import ImageError, decode_image, encode_image, image_suffix
from spherecf.data._index import write_index
from spherecf.data._iterate import ImageBatch, Skipped, iter_images, load_batches
from spherecf.data._keys import Keys, read_keys
from spherecf.data._list import ListFile
from spherecf.data._open import open_pairs, open_source
from spherecf.data._orl import orl_faces
from spherecf.data._pair_table import read_cfp_pairs, read_pair_table
from spherecf.data._pairbin import PairBin
from spherecf.data._pairs import PairList, read_lfw_pairs
from spherecf.data._records import RecordFile
from spherecf.data._sharpness import sharpness
from spherecf.data._source import ImageSource, Subset
from spherecf.data._split import split_identities
from spherecf.data._synthetic import SyntheticImages
from spherecf.data._views import View, training_views
from spherecf.data._write import write_folder, write_list, write_pair_bin, write_records

__all__ = [
    "KINDS",
    "RECIPES",
    "Degradation",
    "Degraded",
    "Enrolled",
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
    "Recipe",
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

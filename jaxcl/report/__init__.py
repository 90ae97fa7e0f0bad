"""`report.html`: one self-contained page that shows what a run has learned.

    write_report("report.html", Report(title="SimCLR on emoji", sections=(Results(rows), ...)))

Sections take plain NumPy arrays and dicts. The page needs no network and no server, follows the
reader's light or dark setting, and treats every label and file name as text.
"""

from jaxcl.report.curves import Curves
from jaxcl.report.geometry import layout, nearest
from jaxcl.report.images import Gallery
from jaxcl.report.levels import LevelSheet, levels_png, tree_colours
from jaxcl.report.maps import Map
from jaxcl.report.page import Report, Section, render, write_report
from jaxcl.report.sheets import Neighbours, Pairs
from jaxcl.report.spaces import SpaceSheet, spaces_png
from jaxcl.report.tables import Confusion, Results

__all__ = [
    "Confusion",
    "Curves",
    "Gallery",
    "LevelSheet",
    "Map",
    "Neighbours",
    "Pairs",
    "Report",
    "Results",
    "Section",
    "SpaceSheet",
    "layout",
    "levels_png",
    "nearest",
    "render",
    "spaces_png",
    "tree_colours",
    "write_report",
]

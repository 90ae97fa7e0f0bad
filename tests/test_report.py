"""The report: one file that loads nothing, escapes everything, and shows the right numbers."""

import base64
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from jaxcl import report
from jaxcl.report import curves, geometry, images, page, sheets, text

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--",
    "]]>&amp;&lt;",
    "\ud800 not utf-8 \udcff",
    "\u202eright to left\x00\x1b[31m",
    "${{7*7}} {0} %s \\u003c $x_$^{",
    "ZWJ \U0001f468\u200d\U0001f469",
)


class Reader(html.parser.HTMLParser):
    """Collects elements, attributes, texts and script bodies of a document."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self._open = [], [], [], []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        void = {"meta", "img", "br", "input", "link", "hr", "base"}
        if tag not in void:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif data.strip():
            self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pictures(count=24, side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def gallery(names=None, count=24):
    fine = np.arange(count) % 6
    labels = np.stack([fine // 3, fine], 1).astype(np.int32)
    labels[0] = -1
    return report.Gallery(
        pictures(count),
        labels,
        ("kind", "sort"),
        names or (("a", "b"), ("u", "v", "w", "x", "y", "z")),
        [f"file {i}.png" for i in range(count)],
    )


def features(count=24, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def history(steps=40):
    rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "time": 0.1 * step, "loss": 5.0 / step, "learning_rate": 0.1})
        if step % 10 == 0:
            rows.append({"step": step, "time": 0.1 * step, "knn/kind": 0.5, "knn/sort": 0.25})
    return rows


def results():
    table = {"raw pixels": (0.6, 0.5), "untrained": (0.5, 0.4), "trained": (0.65, 0.48)}
    return [
        {"features": name, "method": "knn", "level": level, "accuracy": value, "queries": 24}
        for name, values in table.items()
        for level, value in zip(("kind", "sort"), values, strict=True)
    ]


def full(**changes):
    shown = gallery()
    parts = {
        "title": "A run",
        "summary": "What was done.",
        "facts": {"data": "24 images"},
        "warnings": ["collapsed: not really"],
        "sections": (
            report.Results(results()),
            report.Pairs(pictures(3), np.stack([pictures(3), pictures(3, seed=1)], 1)),
            report.Neighbours(shown, {"trained": features(), "raw pixels": features(seed=1)}),
            report.Map(shown, {"trained": features(), "raw pixels": features(seed=1)}),
            report.Curves(history(), trivial_loss=4.0),
            report.Confusion(shown.ids[:, 0], shown.ids[::-1, 0], shown.names[0]),
        ),
        "next_steps": [("Probe it", "python -m jaxcl.probe --workdir=x")],
        "config": {"seed": 0, "optim": {"name": "lars", "betas": (0.9, 0.99)}},
    }
    return report.Report(**(parts | changes))


@pytest.fixture(scope="module")
def document():
    return report.render(full())


# -- one file ---------------------------------------------------------------------------------


def test_page_is_well_formed_and_complete(document):
    reader = Reader(document)  # asserts that every element is closed in order
    assert reader._open == []
    headings = [t for t in reader.texts if t in {section.title for section in full().sections}]
    assert len(headings) >= 6
    for wanted in ("A run", "What was done.", "24 images", "collapsed: not really", "0.9", "lars"):
        assert any(wanted in t for t in reader.texts), wanted
    anchors = {attributes["href"] for attributes in reader.of("a")}
    assert anchors == {f"#{attributes['id']}" for attributes in reader.of("section")}


def test_page_loads_nothing(document):
    reader = Reader(document)
    for tag, attributes in reader.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}, tag
        for name in ("src", "srcset", "data", "action", "href", "xlink:href"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"https?:|//\w+\.\w|@import|@font-face", document)
    assert set(re.findall(r"url\((?!data:image/|#)[^)]*\)", document)) == set()


def test_only_the_script_of_the_page_may_run(document):
    import hashlib

    reader = Reader(document)
    (policy,) = (
        a["content"] for a in reader.of("meta") if "content" in a and "src" in a["content"]
    )
    running = [a for a in reader.of("script") if a.get("type") != "application/json"]
    assert running == [{}]
    script = reader.scripts[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "innerHTML" not in script
    assert not any(name.startswith("on") for _, a in reader.elements for name in a)


def test_ids_are_unique_and_references_hold(document):
    reader = Reader(document)
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', document)) | set(
        re.findall(r"url\(#([^)]+)\)", document)
    )
    assert used <= set(ids)


def test_no_script_without_a_map():
    bare = report.render(report.Report(title="x", sections=(report.Results(results()),)))
    assert Reader(bare).of("script") == []
    assert Reader(report.render(report.Report(title="x"))).of("section") == []


def test_empty_sections_are_left_out():
    none = gallery(count=1).take(np.zeros(0, int))
    empty = report.Report(
        title="x",
        sections=(
            report.Results([]),
            report.Pairs(pictures(0), np.zeros((0, 2, 8, 8, 3))),
            report.Neighbours(none, {"trained": np.zeros((0, 3))}),
            report.Map(none, {"trained": np.zeros((0, 3))}),
            report.Curves([]),
            report.Curves([{"step": 1, "time": 0.1, "loss": math.nan}]),
            report.Confusion(np.array([-1]), np.array([0]), ("a",)),
        ),
    )
    assert Reader(report.render(empty)).of("section") == []


def test_file_is_written_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write_report(path, full(title="\ud800é"))
    assert "<title>\\ud800é</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_thousand_noisy_thumbnails_stay_small():
    noise = pictures(952, 32)  # the worst case: noise cannot be compressed
    shown = report.Gallery(noise)
    sections = (
        report.Neighbours(shown, {"trained": features(952)}),
        report.Pairs(noise[:12], np.stack([noise[:12]] * 2, 1)),
    )
    assert len(report.render(report.Report(title="x", sections=sections))) < 3_000_000


# -- text ---------------------------------------------------------------------------------------


def test_hostile_texts_stay_texts():
    names = (HOSTILE[:2], tuple(HOSTILE[i % 9] + str(i) for i in range(6)))
    shown = gallery(names)
    shown = report.Gallery(
        shown.images,
        shown.ids,
        (HOSTILE[0], HOSTILE[1]),
        names,
        [HOSTILE[i % 9] for i in range(24)],
    )
    every = ", ".join(HOSTILE)
    rows = [{"step": s, h: float(s), "loss": 1.0 / s} for h in HOSTILE for s in range(1, 9)]
    bad = report.Report(
        title=every,
        summary=every,
        facts=dict(zip(HOSTILE, HOSTILE, strict=True)),
        warnings=HOSTILE,
        sections=(
            report.Results(
                [{"features": h, "method": h, "level": h, "accuracy": 0.5} for h in HOSTILE],
                title=every,
                note=every,
            ),
            report.Pairs(pictures(9), np.stack([pictures(9)] * 2, 1), HOSTILE),
            report.Neighbours(shown, {h: features() for h in HOSTILE}),
            report.Map(shown, {h: features() for h in HOSTILE}),
            report.Curves(rows),
            report.Confusion(np.arange(9), np.arange(9)[::-1], HOSTILE, note=every),
        ),
        next_steps=list(zip(HOSTILE, HOSTILE, strict=True)),
        config={h: {h: h} for h in HOSTILE},
    )
    html_text = report.render(bad)
    html_text.encode("utf-8")
    reader = Reader(html_text)
    assert reader._open == []
    allowed = {tag for tag, _ in Reader(report.render(full())).elements}
    assert {tag for tag, _ in reader.elements} <= allowed
    assert not any(name.startswith("on") for _, a in reader.elements for name in a)
    assert len(reader.of("script")) == 2
    assert "\u202e" not in html_text
    assert "\x00" not in html_text
    body = "".join(reader.texts)
    for hostile in HOSTILE:
        assert text.printable(hostile) in body
    (block,) = (s for s in reader.scripts if s.lstrip().startswith("{"))
    data = json.loads(block)
    assert data["captions"][:9] == [text.printable(h) for h in HOSTILE]
    assert "<" not in block


def test_printable_text():
    assert text.printable("a\x1b[0m\u202eb\udcffc") == "a\\x1b[0m\\u202eb\\udcffc"
    assert text.printable("\U0001f468\u200d\U0001f469 é\n") == "\U0001f468\u200d\U0001f469 é\n"
    assert text.printable(3) == "3"
    assert text.escape("<a b='\"&") == "&lt;a b=&#x27;&quot;&amp;"
    assert text.percent(0.6254) == "62.5"
    assert text.percent(math.nan) == "–"
    assert text.anchor("What? is <taken> é for 2") == "what-is-taken-for-2"


# -- tables -------------------------------------------------------------------------------------


def body(section):
    return section.body(page.Page())


def cells(markup, tag):
    return [re.sub(r"<[^>]+>", "", c) for c in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", markup)]


def test_results_table_and_its_words():
    markup = body(report.Results(results()))
    assert cells(markup, "td") == ["60.0", "50.0", "50.0", "40.0", "65.0", "48.0"]
    best = re.findall(r'<td class="best"><span>([\d.]+)', markup)
    assert best == ["50.0", "65.0"]
    assert cells(markup, "li") == [
        "-2.0 to +5.0 points against raw pixels",
        "+8.0 to +15.0 points against untrained",
    ]
    assert re.findall(r'<li class="(\w+)"', markup) == ["mixed", "good"]
    assert "kind24 images" in cells(markup, "th")


def test_results_with_gaps_spreads_and_another_reference():
    more = {
        "features": "trained",
        "method": "linear",
        "level": "kind",
        "accuracy": 0.7,
        "std": 0.011,
    }
    rows = [*results()[:-1], more]
    markup = body(report.Results(rows, trained="untrained"))
    assert cells(markup, "td") == [
        *("60.0", "–", "50.0"),
        *("50.0", "–", "40.0"),
        *("65.0", "70.0 ± 1.1", "–"),
    ]
    assert cells(markup, "li") == [
        "-10.0 points against raw pixels",
        "-15.0 points against trained",
    ]
    assert re.findall(r'<li class="(\w+)"', markup) == ["bad", "bad"]


def test_results_leave_out_what_would_make_them_twice_as_long():
    found = {"features": "trained", "method": "unseen/retrieval/found@10", "level": "kind"}
    shown = body(report.Results([*results(), {**found, "accuracy": 0.1}]))
    assert shown == body(report.Results(results()))
    assert body(report.Results([{**found, "accuracy": 0.1}])) == ""


def test_confusion_counts():
    truth = np.array([0, 0, 0, 1, 1, -1, 2])
    predicted = np.array([0, 1, 1, 1, 0, 0, -1])
    markup = body(report.Confusion(truth, predicted, ("a", "b", "c")))
    assert cells(markup, "td") == ["", "33", "67", "", "50", "50", "", "", "", ""]
    assert cells(markup, "li") == ["a → b 2", "b → a 1"]
    assert "<table" not in body(report.Confusion(truth, predicted, ("a", "b", "c"), limit=2))


# -- geometry -----------------------------------------------------------------------------------


def test_nearest_matches_loops():
    x = features(30) + 3.0  # far from the origin: without centring all cosines are near 1
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    for i, found in enumerate(geometry.nearest(x, 4)):
        cosines = [
            -2.0
            if j == i
            else centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
            for j in range(30)
        ]
        np.testing.assert_array_equal(found, np.argsort(cosines)[::-1][:4])


def test_nearest_of_few_equal_and_many_rows():
    np.testing.assert_array_equal(geometry.nearest(np.ones((3, 2)), 8), [[1, 2], [0, 2], [0, 1]])
    many = geometry.nearest(features(1500), 2)  # more than one block of rows
    whole = geometry.centred_unit(features(1500))
    similarity = whole @ whole.T - 3 * np.eye(1500)
    np.testing.assert_array_equal(many[:, 0], similarity.argmax(1))


def test_layout_separates_clusters_and_repeats():
    rng = np.random.default_rng(0)
    centres = 8 * np.eye(3, 6)
    x = np.repeat(centres, 20, axis=0) + rng.normal(size=(60, 6))
    points, method = geometry.layout(x)
    assert method == "t-SNE"
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.ptp(points, axis=0).max() == pytest.approx(1.0)
    means = points.reshape(3, 20, 2).mean(1)
    within = np.linalg.norm(points.reshape(3, 20, 2) - means[:, None], axis=-1).max()
    between = min(np.linalg.norm(means[i] - means[j]) for i in range(3) for j in range(i))
    assert between > 1.5 * within
    np.testing.assert_array_equal(points, geometry.layout(x)[0])


@pytest.mark.parametrize("x", [np.ones((12, 3)), np.ones((5, 1)), features(9), np.zeros((3, 4))])
def test_layout_of_degenerate_embeddings(x):
    points, _ = geometry.layout(x)
    assert points.shape == (len(x), 2)
    assert np.isfinite(points).all()


def test_many_points_are_placed_by_pca(monkeypatch):
    monkeypatch.setattr(geometry, "TSNE_LIMIT", 20)
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 50)
    x = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    points, method = geometry.layout(x - x.mean(0))
    assert method == "PCA"
    radius = np.linalg.norm(points - 0.5, axis=1)
    assert radius.min() > 0.4  # a circle stays a circle


def test_points_are_laid_flat_and_fill_the_square():
    rng = np.random.default_rng(0)
    long = rng.normal(size=(200, 2)) * (1.0, 4.0)
    flat = geometry.lay_flat(long)
    assert np.ptp(flat, axis=0).argmax() == 0
    assert np.ptp(flat, axis=0).max() == pytest.approx(1.0)
    distances = [np.linalg.norm(p[:50, None] - p[None, :50], axis=-1) for p in (long, flat)]
    np.testing.assert_allclose(distances[1] * np.ptp(long @ [0, 1]), distances[0], rtol=0.05)
    filled = geometry.fill(flat)
    assert np.ptp(filled, axis=0)[0] == pytest.approx(1.0)
    assert np.ptp(filled[:, 1]) == pytest.approx(min(1.5 * np.ptp(flat[:, 1]), 1.0))


def test_align_undoes_a_turn():
    reference = geometry._fit(features(20)[:, :2])
    turn = np.array([[0.0, -1.0], [-1.0, 0.0]])  # a turn and a mirror
    turned = geometry.align(geometry._fit(reference @ turn), reference)
    np.testing.assert_allclose(turned, reference, atol=1e-6)


# -- images -------------------------------------------------------------------------------------


def decode(uri):
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", uri).groups()
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("shape", [(7, 8, 8, 3), (5, 6, 12, 3), (4, 8, 8, 1), (1, 4, 4, 3)])
def test_sprite_holds_every_image_where_its_position_says(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sprite = images.make_sprite(array, 64)
    kind, sheet = decode(sprite.uri)
    assert kind == "png"
    sheet = sheet.reshape(*sheet.shape[:2], -1)
    height, width = shape[1:3]
    assert sheet.shape[:2] == (sprite.rows * height, sprite.columns * width)
    for index, picture in enumerate(array):
        across, down = (float(p.rstrip("%")) / 100 for p in sprite.position(index).split())
        # What CSS does: offset = percentage * (box - picture).
        left = round(across * (sheet.shape[1] - width))
        top = round(down * (sheet.shape[0] - height))
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], picture)


def test_large_images_are_reduced_and_photographs_are_jpeg(monkeypatch):
    array = pictures(3, 90)
    sprite = images.make_sprite(array[:, :60], 30)
    assert sprite.cell == (20, 30)
    _, sheet = decode(sprite.uri)
    mean = array[:, :60].astype(float).reshape(3, 20, 3, 30, 3, 3).mean((2, 4))
    np.testing.assert_allclose(sheet[:20, :30], mean[0], atol=1)
    monkeypatch.setattr(images, "PNG_BYTES", 1000)
    kind, again = decode(images.make_sprite(array[:, :60], 30).uri)
    assert kind == "jpeg"
    assert np.abs(again.astype(float) - sheet).mean() < 40


def test_a_sprite_is_stored_once():
    made = page.Page()
    array = pictures(4)
    assert made.sprite(array, 64)[0] == made.sprite(array, 64)[0]
    assert made.sprite(array.copy(), 64)[0] != made.sprite(array, 64)[0]
    assert len(made.styles) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": pictures(24).astype(np.float32)}, r"Gallery\.images: expected uint8\[N, h"),
        ({"images": pictures(24)[..., :2]}, "expected uint8"),
        ({"labels": np.zeros((24, 1), np.int32)}, r"expected labels \[24, 2\]"),
        ({"names": (("a",), ("u",))}, "'kind' has no name among 1"),
        ({"captions": ["x"]}, "1 captions for 24 images"),
    ],
)
def test_gallery_checks_what_it_is_given(changes, message):
    import dataclasses

    with pytest.raises(ValueError, match=message):
        dataclasses.replace(gallery(), **changes)


def test_features_are_checked():
    with pytest.raises(ValueError, match=r"Map: features 'h' must be \[24, F\]"):
        report.Map(gallery(), {"h": features(23)})
    with pytest.raises(ValueError, match="'h' have values that are not finite"):
        report.Neighbours(gallery(), {"h": features() * np.nan})
    with pytest.raises(ValueError, match=r"no label level 'x'; there are \['kind', 'sort'\]"):
        report.Map(gallery(), {"h": features()}, level="x")
    with pytest.raises(ValueError, match="3 originals, but views of 2"):
        report.Pairs(pictures(3), np.zeros((2, 2, 8, 8, 3)))


# -- sheets and map -----------------------------------------------------------------------------


def test_agreement_is_along_the_path():
    labels = np.array([[0, 1], [0, 1], [0, 2], [1, 1], [-1, 1], [0, -1]], np.int32)
    shown = report.Gallery(pictures(6), labels, ("kind", "sort"), (("a", "b"), ("u", "v", "w")))
    got = shown.agreement(np.zeros(6, int), np.arange(6))
    np.testing.assert_array_equal(got, [2, 2, 1, 0, 0, 1])
    assert shown.agreement(np.array(4), np.array(4)) == 0  # -1 agrees with nothing
    assert shown.path(5) == ["a"]
    assert shown.caption(5) == "image 5"


def test_pixels_of_views_are_shown_as_they_are():
    views = np.array([0.0, 0.5, 1.2, -0.1])[:, None, None, None, None] * np.ones((4, 1, 4, 4, 3))
    pairs = report.Pairs(pictures(4, 4), views)
    np.testing.assert_array_equal(pairs.views[:, 0, 0, 0, 0], [0, 128, 255, 0])
    markup = body(pairs)
    assert markup.count('class="pair"') == 4
    assert markup.count('role="img"') == 8


def test_neighbour_sheet_shows_the_nearest_with_their_frames():
    shown = gallery()
    x = np.eye(24, 24)
    x[2], x[8], x[3], x[4] = x[2] + 9 * x[5], x[5] * 9 + x[8], x[5] * 4 + x[3], x[5] * 3 + x[4]
    # Of image 2 (a, w): 8 is nearest (a, w), then 3 (b, x) and 4 (b, y).
    order = geometry.nearest(x, 3)[2].tolist()
    assert order == [8, 3, 4]
    markup = body(report.Neighbours(shown, {"h": x}, count=3, queries=[2]))
    line = markup[markup.index('class="cells"') :]
    assert re.findall(r'data-mark="(.)"', line) == ["✓", "✗", "✗"]
    assert re.findall(r'class="thumb s0 (\w+)"', line) == ["all", "none", "none"]
    assert cells(line, "small")[:3] == ["w", "x", "y"]


def test_shares_of_agreeing_neighbours():
    labels = np.repeat(np.arange(4, dtype=np.int32), 6)[:, None]
    shown = report.Gallery(pictures(24), labels, ("kind",), (tuple("abcd"),))
    x = np.eye(4)[labels[:, 0]] + 0.01 * features(24)[:, :4]
    markup = body(report.Neighbours(shown, {"good": x, "bad": features(24)}, count=5))
    shares = [float(v) for v in re.findall(r'style="--share:([\d.]+)"', markup)]
    index = geometry.nearest(features(24), 5)
    bad = np.mean([labels[i, 0] == labels[j, 0] for i in range(24) for j in index[i]])
    assert shares == [1.0, pytest.approx(bad, abs=1e-4), pytest.approx(5 / 23, abs=1e-4)]


def test_queries_take_turns_and_are_repeatable():
    shown = gallery(count=60)
    chosen = sheets.pick_queries(shown, 9, seed=0)
    assert chosen == sheets.pick_queries(shown, 9, seed=0)
    assert chosen != sheets.pick_queries(shown, 9, seed=1)
    assert len(set(chosen)) == 9
    kinds = shown.ids[chosen, 0]
    assert sorted((kinds == k).sum() for k in (-1, 0, 1)) == [1, 4, 4]  # one image has no label


@pytest.mark.parametrize(
    ("levels", "want"),
    [
        (0, [""]),
        (1, ["none ✗", "all ✓"]),
        (2, ["none ✗", "some ~", "all ✓"]),
        (3, ["none ✗", "some ~", "most ✓", "all ★"]),
        (4, ["none ✗", "some ~", "some ~", "most ✓", "all ★"]),
    ],
)
def test_marks_are_graded(levels, want):
    got = [" ".join(sheets.grade_mark(g, levels)).strip() for g in range(levels + 1)]
    assert got == want
    legend = sheets.grade_legend([f"level {i}" for i in range(levels)])
    assert legend.count("<li>") == len(set(want) - {""})


def test_map_data(document):
    (block,) = (s for s in Reader(document).scripts if s.lstrip().startswith("{"))
    data = json.loads(block)
    shown = gallery()
    assert data["captions"] == list(shown.captions)
    assert [level["ids"] for level in data["levels"]] == shown.ids.T.tolist()
    assert [entry["name"] for entry in data["layouts"]] == ["trained", "raw pixels"]
    for entry, seed in zip(data["layouts"], (0, 1), strict=True):
        want = geometry.nearest(features(seed=seed), 8)
        np.testing.assert_array_equal(np.reshape(entry["near"], (24, 8)), want)
        xy = np.reshape(entry["xy"], (24, 2)) / data["units"]
        assert xy.min() >= 0
        assert xy.max() <= 1
    # The map is the layout, turned and its axes stretched: a linear function of it.
    trained, _ = geometry.layout(features())
    got = np.reshape(data["layouts"][0]["xy"], (24, 2)) / data["units"]
    known = np.concatenate([trained, np.ones((24, 1))], 1)
    turn, *_ = np.linalg.lstsq(known, got, rcond=None)
    np.testing.assert_allclose(known @ turn, got, atol=2e-4)
    stretch = np.linalg.svd(turn[:2])[1]
    assert stretch.max() < 1.7 * stretch.min()


# -- curves -------------------------------------------------------------------------------------


def test_each_kind_of_metric_has_its_panel():
    rows = [
        {"step": s, "time": 1.0 * s, "loss": 1.0, "knn": 0.1 * s, "knn/kind": 0.2, "own": s / 7}
        for s in range(1, 5)
    ]
    rows += [{"step": 5, "time": 5.0, "loss": math.inf, "constant": 1.0, "images_per_second": 3.0}]
    markup = body(report.Curves(rows, trivial_loss=6.93))
    assert cells(markup, "figcaption") == ["Loss", "kNN while training", "Speed", "own"]
    assert "Dashed: 6.93" in markup
    assert "knn/kind" in markup
    assert markup.count("<svg") == 4


def test_the_heads_of_looc_have_a_panel_and_their_losses_are_in_that_of_the_loss():
    names = ("own_key_top1_rotate", "own_key_margin_rotate", "own_key_top1_jitter+gray")
    losses = ("loss", "loss_invariant", "loss_rotate", "loss_jitter+gray")
    rows = [
        {"step": s, "time": 1.0 * s} | dict.fromkeys(names + losses, s / 7) for s in range(1, 5)
    ]
    markup = body(report.Curves(rows))
    assert cells(markup, "figcaption") == ["Loss", "Telling the factors"]
    labels = re.findall(r'aria-label="([^"]*)"', markup)
    assert [set(label.split(", ")) for label in labels] == [set(losses), set(names)]
    assert "1/(n + 1)" in markup


def test_svg_takes_its_colours_from_the_page():
    svg = curves.draw({"a": (np.arange(5), np.arange(5.0)), "b": (np.arange(5), np.ones(5))})
    assert "currentColor" in svg
    assert "var(--c1)" in svg
    assert "var(--c2)" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "xmlns" not in svg


def test_long_curves_are_reduced_and_gaps_stay():
    steps = np.arange(50_000)
    svg = curves.draw({"a": (steps, np.sin(steps / 1000))})
    assert len(svg) < 60_000
    reduced, values = curves._reduced(steps, steps.astype(float))
    assert len(reduced) <= curves.POINTS
    np.testing.assert_allclose(reduced, values)
    gap = curves.draw({"a": (np.arange(4), np.array([1.0, math.nan, math.inf, 2.0]))})
    assert "nan" not in gap
    assert "inf" not in gap


def test_noise_is_smoothed_and_a_schedule_is_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    smooth = curves._smoothed(2.0 + noise)
    width = 9  # 200 // 25, made odd
    for i in (0, 3, 100, 199):
        window = noise[max(0, i - width // 2) : i + width // 2 + 1]
        assert smooth[i] == pytest.approx(2.0 + window.mean())
    assert curves._smoothed(noise[:70]) is None
    corner = np.minimum(np.arange(200.0), 50.0)
    assert curves._smoothed(corner) is None
    assert curves._smoothed(np.full(200, 2.5)) is None


def test_settings_are_flattened():
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": "text", "f": (1, None)}
    assert page.flatten(nested) == [
        ("a.b.c", "1"),
        ("a.d", "{}"),
        ("e", "text"),
        ("f", "(1, None)"),
    ]


def test_short_names_pass_over_levels_of_single_images():
    labels = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 1, -1], [-1, -1, -1]])
    names = (("a",), ("u", "v"), tuple("wxyz"))
    shown = report.Gallery(pictures(6), labels.astype(np.int32), ("k", "l", "m"), names)
    assert [shown.short(i) for i in range(6)] == ["u", "u", "u", "v", "v", "image 5"]
    alone = report.Gallery(pictures(2), labels[:2, 2:].astype(np.int32), ("m",), names[2:])
    assert alone.short(1) == "x"  # the only level counts, however fine

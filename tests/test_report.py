"""Tests the report: one file that needs nothing else, with the recommendation first and the figures
that it rests on below."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import cycle_recommendation, recommendation
from analysis.__main__ import main
from analysis.report import build_report
from analysis.runs import sweep_runs
from analysis.tables import FRAMES, block_tables
from sweeps.names import run_name
from tests.planted_sweep import SIMULATED, YAML, row


@pytest.fixture(scope="module")
def made(first_look):
    return build_report("first-look", first_look.uri)


class Outline(HTMLParser):
    """Parses a page into tags with their attributes, in order, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_it_needs_neither_network_nor_script(made):
    outline = Outline(made)
    assert outline.open == [], "each tag is closed in its turn"
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    links = [
        value for _, attrs in outline.tags for key, value in attrs.items() if key in ("src", "href")
    ]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in made
    assert "@import" not in made


def test_recommendations_come_first_then_tables_and_pictures_then_the_rest(made, first_look):
    runs = sweep_runs("first-look", first_look.uri)
    advice = [
        *recommendation.sentences(runs, markdown=True),
        *cycle_recommendation.sentences(runs, markdown=True),
    ]
    assert len(advice) == 3, "the workers, what bounds their epoch, and the cycles"
    order = [
        *advice, "30 completed, 6 overflowed",
        "Block workers", "Epoch seconds", "Where an epoch", "Forecast and measured",
        "Block cycles", "Validation accuracy",
        "Disturbed trials", "Machines and versions", "Sweep file", "Rebuild",
    ]  # fmt: skip
    text = Outline(made).text
    found = [text.index(each) for each in order]
    assert found == sorted(found)
    shown = [attrs["alt"] for tag, attrs in Outline(made).tags if tag == "img"]
    assert len(shown) == 7
    assert all(shown)
    assert "torch 2.14.1, mlflow 3.17.2" in text
    assert YAML.strip() in text
    assert "analysis first-look --uri sqlite:" in text


def test_its_cells_are_those_of_the_tables(made, first_look):
    cells = set(re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", made))
    markdown = "\n".join(block_tables(sweep_runs("first-look", first_look.uri), markdown=True))
    of_tables = {
        cell.strip()
        for line in markdown.splitlines()
        if line.startswith("|")
        for cell in line.strip("|").split("|")
    }
    wanted = {cell for cell in of_tables if re.search(r"\d", cell) and "/s" not in cell}
    assert wanted <= cells


def test_disturbed_and_failed_trials_are_listed_and_nothing_in_them_is_markup(tracking, plant):
    swept = {"loader.num_workers": 2}
    parent = tracking.start_sweep(
        "s", "<b>: 1\n", [row("workers", swept, repeat) for repeat in (1, 2)], ""
    )
    plant(parent, swept, 1, tags=SIMULATED | {"disturbed": "<script> & others"}, epoch_s=1.0)
    failed = plant(parent, swept, 2, "crashed")
    tracking.set_tags(failed, {"evidence": "<img src=x> *boom*"})
    page = build_report("s", tracking.uri)
    assert "<script>" not in page
    assert "<img src=x>" not in page
    text = Outline(page).text
    assert "<script> & others" in text
    assert f"{run_name('workers', swept, 2)}: crashed, <img src=x>" in text
    assert "<b>: 1" in text


def test_evidence_is_quoted_whatever_it_looks_like(tracking, plant):
    said = [
        "bad file ![clip](http://evil.example/x.png)",
        "Dataset.__init__() got **kwargs and <https://evil.example>",
    ]
    trials = [({"loader.num_workers": 2}, repeat) for repeat in (1, 2)]
    parent = tracking.start_sweep(
        "first-look", YAML, [row("workers", *trial) for trial in trials], ""
    )
    for trial, evidence in zip(trials, said, strict=True):
        run = plant(parent, *trial, outcome="crashed", tags=SIMULATED)
        tracking.client.set_tag(run, "evidence", evidence)
    outline = Outline(build_report("first-look", tracking.uri))
    assert not {"img", "a", "strong", "em"} & {tag for tag, _ in outline.tags}
    assert all(evidence in outline.text for evidence in said)


def test_a_trial_that_stayed_disturbed_and_one_that_ran_again_undisturbed_are_listed(
    tracking, plant
):
    trials = [({"loader.num_workers": 2}, repeat) for repeat in (1, 2)]
    parent = tracking.start_sweep(
        "first-look", YAML, [row("workers", *trial) for trial in trials], ""
    )
    disturbed = SIMULATED | {"disturbed": "a compiler"}
    for trial, tags in ((trials[0], disturbed), (trials[1], disturbed), (trials[1], SIMULATED)):
        plant(parent, *trial, tags=tags, epoch_s=1.0)
    text = Outline(build_report("first-look", tracking.uri)).text
    assert "a compiler11" in text, "cause, disturbed runs, runs"
    assert "ran again undisturbed12" in text
    assert "nan" not in text


def test_a_sweep_before_its_first_trial_has_a_report(tracking):
    tracking.start_sweep("s", "name: s\n", [], "")
    outline = Outline(build_report("s", tracking.uri))
    assert "Sweep s: no trial" in outline.text
    assert "name: s\n" in outline.text
    assert not {"img", "table"} & {tag for tag, _ in outline.tags}


def test_the_command_writes_report_and_csv(first_look, tmp_path: Path, capsys):
    main(
        [
            "first-look",
            "--uri",
            first_look.uri,
            "--csv",
            str(tmp_path / "csv"),
            "--where",
            "block=workers",
        ]
    )
    names = capsys.readouterr().out.split()
    assert {Path(name).stem for name in names} == set(FRAMES) - {
        "key_times",
        "cycle_accuracies",
        "cycle_recommendations",
        "prices",
    }
    header = (tmp_path / "csv/epoch_times.csv").read_text().splitlines()[0]
    assert header.split(",")[:11] == [
        "sweep", "block", "varied", "surroundings", "shm_size", "num_workers",
        "trials", "n", "median_s", "min_s", "max_s",
    ]  # fmt: skip
    main(
        [
            "first-look",
            "--uri",
            first_look.uri,
            "--out",
            str(tmp_path / "out"),
            "--where",
            "outcome=shm_exhausted",
        ]
    )
    file = Path(capsys.readouterr().out.strip())
    assert (file.name, "6 overflowed" in file.read_text()) == ("report.html", True)


def test_the_command_prints_markdown_and_several_sweeps(tracking, plant, capsys):
    for name in ("a", "b"):
        parent = tracking.start_sweep(
            name, "", [row("workers", {"loader.num_workers": count}, 1) for count in (0, 2)], ""
        )
        for count in (0, 2):
            plant(parent, {"loader.num_workers": count}, epoch_s=1.0)
    main(["a", "b", "--uri", tracking.uri, "--markdown"])
    printed = capsys.readouterr().out
    assert "## Sweep a + b: 4 completed" in printed
    titles = [line.split(", ") for line in printed.splitlines() if line.startswith("### Epoch")]
    assert [title[1:] for title in titles] == [["block workers", f"sweep={name}"] for name in "ab"]
    with pytest.raises(SystemExit) as left:
        main(["a", "--uri", tracking.uri, "--where", "num_workers=9"])
    complaint = capsys.readouterr().err
    assert left.value.code == 2
    assert complaint.startswith("num_workers=9: ")
    assert complaint.endswith(": 0, 2\n")

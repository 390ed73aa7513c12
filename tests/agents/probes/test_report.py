"""The page: whole in itself, drawn by a browser, and refused before any work where it cannot be."""

import base64
import html
import json
import math
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from planted import new_policy

from decision_s4 import evaluate, train
from decision_s4.agents.probes import explain, report
from decision_s4.agents.probes import page as page_of
from decision_s4.agents.probes.base import Curves, Findings, Table
from decision_s4.agents.probes.faithfulness import interval

TINY = (
    "--steps 2 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run_dir = str(tmp_path_factory.mktemp("runs") / "run")
        assert train.main([*TINY.split(), "--run-dir", run_dir]) == 0
        yield run_dir


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        for name, small in {"QUERIES": 3, "EVIDENCE": 3, "LOOP_EPISODES": 1}.items():
            patch.setattr(explain, name, small)
        probes = "gradient-x-input,occlusion,hidden-attention,patching,sae"
        flags = ["--episodes", "1", "--probe", probes]
        assert evaluate.main([run, *flags, "--report", str(path)]) == 0
    return path


def data_of(page) -> dict:
    text = page.read_text("utf-8")
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])


def test_the_page_needs_nothing_from_elsewhere(page):
    text = page.read_text("utf-8")
    assert not re.findall(r"https?://|src=|@import|<link", text)


def test_it_begins_with_the_most_faithful_method_that_tells_inputs_apart(page):
    data = data_of(page)
    gains = {m["name"]: m["gain"][0] for m in data["methods"] if m["tells_features"]}
    assert data["methods"][data["first_method"]]["name"] == max(gains, key=gains.get)
    assert set(gains) == {"gradient-x-input", "occlusion"}


def test_the_page_holds_names_maps_and_evidence(page):
    data = data_of(page)
    assert data["features"][:3] == ["return-to-go", "torso height", "torso angle"]
    methods = {method["name"]: method["tells_features"] for method in data["methods"]}
    assert methods == {"gradient-x-input": True, "occlusion": True, "hidden-attention": False}
    query = data["episodes"][0]["queries"][-1]
    found = query["maps"][0][1]
    cells = np.frombuffer(base64.b64decode(found["data"]), "<i2")
    assert len(cells) == (query["step"] - query["first"] + 1) * len(data["features"])
    assert np.abs(cells).max() == 32767
    assert found["baseline"] == "the same time step of other episodes"


def without_scripts(page) -> str:
    return re.sub("<script.*?</script>", "", page.read_text("utf-8"), flags=re.S)


def test_without_a_script_it_says_what_was_done_why_and_what_the_evidence_is(page):
    text = without_scripts(page)
    did = (
        r"Asked for 3600, it returned -?\d+ in \d+ steps until the environment ended the episode\."
    )
    assert re.search(did, text)
    assert re.search("What it needs most, asked for 3600: without|No single input's absence", text)
    first = data_of(page)["methods"][data_of(page)["first_method"]]["name"]
    still = re.search("<noscript><h3>(.*?)</noscript>", text, re.S)[1]
    assert re.match(r"At step \d+ thigh torque was [+-]\d", still)
    assert f"pushed it by ({first})" in still
    assert len(re.findall("<tr>", still)) == 1 + 8
    assert not re.search("__[A-Z]+__", text)
    headings = re.findall("<h2>([^<]*)</h2>", text)
    assert headings[-4:] == [
        "What each input is worth in the loop",
        "Can the maps be believed?",
        "patching: through which layer and which past step does another episode change the answer?",
        "sae: of how few directions at a time is what the policy holds in mind made up?",
    ]
    orders = re.findall("<tr><td>([^<]*)</td>", text)
    assert {"random order", "plain gradient", "occlusion", "nothing"} <= set(orders)


POINT_AND_CHOOSE = """<script>
const seen = {}, box = $("map").getBoundingClientRect();
$("map").dispatchEvent(new MouseEvent("mousemove",
  {clientX: box.left + PLOT.left + 3, clientY: box.top + rowTop(1) + 3}));
seen.tip = $("tip").textContent; seen.shown = $("tip").style.display;
$("map").dispatchEvent(new MouseEvent("mouseleave")); seen.left = $("tip").style.display;
$("method").value = "1"; $("method").dispatchEvent(new Event("change"));
seen.question = $("question").textContent;
$("time").value = "0"; $("time").dispatchEvent(new Event("input"));
seen.when = $("when").textContent;
seen.linear = colour(.25); $("root").click(); seen.root = colour(.25);
$("method").value = "2"; $("method").dispatchEvent(new Event("change"));
const there = $("map").getBoundingClientRect();
$("map").dispatchEvent(new MouseEvent("mousemove",
  {clientX: there.left + PLOT.left + 3, clientY: there.top + PLOT.top + 3}));
seen.weight = $("tip").textContent; seen.beside = $("features").textContent;
seen.fetched = performance.getEntriesByType("resource").length;
document.title = JSON.stringify(seen);
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]

    def browse(page, place="", flags=()) -> str:
        """The document as it stands once its script has run."""
        address = page.as_uri() + place
        command = [browser, *common, *flags, "--virtual-time-budget=2000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    return browse


def test_a_browser_draws_it(page, browse):
    drawn = browse(page)
    first = data_of(page)["methods"][data_of(page)["first_method"]]
    assert f'<h2 id="question">{first["name"]}: which inputs' in drawn  # written by the script
    assert f"PUSHED IT UP, by {first['name']}" in drawn
    assert re.search(r"At step \d+ the policy set <b>thigh torque</b> to <b>[+-]?\d", drawn)
    assert re.search("Can it be believed\\?</b> (Better than chance|<b>Not shown)", drawn)
    assert drawn.count('<option value="1">') == 3  # a second episode, target and method


def test_pointing_tells_name_value_and_relevance_and_the_page_can_be_moved(page, browse, tmp_path):
    poked = tmp_path / "poked.html"
    text = page.read_text("utf-8").replace("</body>", POINT_AND_CHOOSE + "</body>")
    poked.write_text(text, "utf-8")
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", browse(poked), re.S)[1]))
    data = data_of(page)
    query = data["episodes"][0]["queries"][1]
    value = data["episodes"][0]["values"][query["first"] * len(data["features"]) + 1]
    assert seen["tip"].startswith(f"torso heightobservation, step {query['first']} (")
    assert f"value {value:.3f}relevance " in seen["tip"]
    assert (seen["shown"], seen["left"]) == ("block", "none")
    assert seen["question"].startswith("occlusion: ")
    assert seen["when"].startswith("step 0 of ")
    assert seen["linear"] != seen["root"]
    assert re.fullmatch(r"step 0 \(now\)100\.0% of the weight", seen["weight"])
    assert "tells steps apart" in seen["beside"]
    assert seen["fetched"] == 0


def test_a_link_leads_to_a_step_of_a_method(page, browse):
    steps = [query["step"] for query in data_of(page)["episodes"][1]["queries"]]
    drawn = browse(page, f"#episode=1&target=1&method=occlusion&step={steps[-1]}")
    assert '<h2 id="question">occlusion: ' in drawn
    assert f">step {steps[-1]} of " in drawn
    first = data_of(page)["methods"][data_of(page)["first_method"]]["name"]
    drawn = browse(page, "#episode=9&method=no&step=x")
    assert f'<h2 id="question">{first}: ' in drawn
    assert "by " + first in browse(page, "#method=hidden-attention")  # which tells no inputs apart


def test_a_page_of_findings_alone_is_drawn(browse, tmp_path):
    found = Findings(
        "horizon",
        [Table("a < b", ["layer", "lost"], [["0", "12 [9, 15]"], ["1", float("nan")]])],
        [Curves("share", "lag", [0, 1], {"one": [0.5, float("nan")], "two": [0.1, 0.2]})],
    )
    policy, task = new_policy("s4"), SimpleNamespace(env_id=None)
    bare = tmp_path / "bare.html"
    bare.write_text(report.render(report.Report("", policy, task, [], [], None, [found])), "utf-8")
    drawn = browse(bare)
    assert 'id="maps"' not in drawn
    assert 'id="answer"' not in drawn
    assert "<h3>a &lt; b</h3>" in drawn
    assert '<span class="bar" style="width:180px"></span>12<small>[9, 15]</small>' in drawn
    assert "<td>–</td>" in drawn
    assert len(re.findall("<polyline", drawn)) == 2


NARROW = """<body style="margin:0"><iframe id="inside" src="report.html"
style="width:390px;height:900px;border:0"></iframe><script>
$ = id => document.getElementById(id);
$("inside").onload = () => setTimeout(() => {
  const root = $("inside").contentDocument.documentElement;
  document.title = root.scrollWidth + " of " + root.clientWidth;
}, 500);
</script></body>"""


def test_nothing_sticks_out_on_a_narrow_screen(page, browse, tmp_path):
    inside, outside = tmp_path / "report.html", tmp_path / "narrow.html"
    inside.write_text(page.read_text("utf-8"), "utf-8")
    outside.write_text(NARROW, "utf-8")
    assert "<title>390 of 390</title>" in browse(
        outside, flags=["--allow-file-access-from-files", "--hide-scrollbars"]
    )


def test_what_a_policy_does_not_read_is_said_beside_its_name():
    policy = new_policy("s4", condition_on_return=False)
    task = SimpleNamespace(env_id=None)
    data = report.page_data(report.Report("", policy, task, [], [], None, []))
    assert data["features"][:2] == ["return-to-go (not read)", "obs[0]"]
    assert data["features"][-1] == "previous action[1]"
    assert not data["reads_return"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe", "oclusion"], "probe 'oclusion' is unknown; did you mean 'occlusion'?"),
        (["--report", "/nowhere/at/all.html"], "--report /nowhere/at/all.html cannot be written"),
        (["--report", "/"], "--report / is a folder; give a file, as /report.html"),
        (["--probe", "lrp", "--chunk-steps", "9"], "not as --chunk-steps 9 reads it; leave out"),
    ],
)
def test_bad_questions_end_before_any_work(run, flags, message, capsys):
    assert evaluate.main([run, *flags]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_an_interval_of_next_to_nothing_has_no_sign():
    assert interval((-0.2, -0.4, 0.3), digits=0) == "0 [0, 0]"
    assert interval((-0.0004, -0.001, 0.1), sign=True) == "+0.000 [-0.001, +0.100]"


def test_curves_of_no_numbers_at_all_are_drawn_empty():
    """As shares of nothing are, where another episode changes no answer."""
    drawn = page_of.curves(Curves("shares", "steps back", [0, 1], {"features": [math.nan] * 2}))
    assert 'points=""' in drawn

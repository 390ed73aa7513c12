"""The page: whole in itself, drawn by a browser, and refused before any work where it cannot be."""

import base64
import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from planted import new_policy

from decision_s4 import evaluate, train
from decision_s4.agents.probes import explain, report

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
    names = [row[0] for row in data["faithfulness"]["tables"][0]["rows"]]
    assert {"random order", "plain gradient", "occlusion"} <= set(names)
    assert [found["method"] for found in data["findings"][:2]] == ["patching", "sae"]
    assert data["findings"][-1]["tables"][0]["rows"][0][0] == "nothing"


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
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]

    def browse(page, place="") -> str:
        """The document as it stands once its script has run."""
        address = page.as_uri() + place
        command = [browser, *flags, "--virtual-time-budget=2000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    return browse


def test_a_browser_draws_it(page, browse):
    drawn = browse(page)
    first = data_of(page)["methods"][data_of(page)["first_method"]]
    assert f'<h2 id="question">{first["name"]}: which inputs' in drawn  # written by the script
    assert f"PUSHED IT UP, by {first['name']}" in drawn
    assert re.search(r"At step \d+ the policy set <b>thigh torque</b> to <b>[+-]?\d", drawn)
    assert re.search("Can it be believed\\?</b> (Better than chance|<b>Not shown)", drawn)
    assert "Are the maps true?" in drawn
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


def test_a_page_of_findings_alone_is_drawn(page, browse, tmp_path):
    data = data_of(page) | {"episodes": [], "methods": [], "limits": [], "faithfulness": None}
    bare = tmp_path / "bare.html"
    bare.write_text(report.TEMPLATE.read_text("utf-8").replace("__DATA__", json.dumps(data)))
    drawn = browse(bare)
    assert "What each input is worth in the loop" in drawn
    assert 'id="maps"' not in drawn


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

"""Who is sent the cluster's token: the cluster, whatever the environment says of proxies, addresses and passwords."""

import asyncio
import json
import threading

import pytest
import ray
import requests
from aiohttp import web
from ray.job_submission import JobDetails
from recording import PROXIES, listening

from emc2dist.config import parse
from emc2dist.errors import LaunchError, SpecError
from emc2dist.launch import ray_jobs, spot, targets
from emc2dist.launch.plan import plan_of
from emc2dist.launch.ray_jobs import RayJobs
from emc2dist.run.access import by_proxy

HEADERS = {"Authorization": "Bearer secret"}
JOB = {
    "type": "SUBMISSION",
    "submission_id": "small-1",
    "status": "SUCCEEDED",
    "entrypoint": "emc2dist train",
    "metadata": {"emc2dist_run": "small"},
}


@pytest.fixture
def dashboard():
    """Of a cluster with one job, which has ended; gives its URL, and notes who was let in by what."""
    seen, loop, up = [], asyncio.new_event_loop(), threading.Event()

    async def answer(request):
        seen.append((request.path, request.headers.get("Authorization")))
        if request.path.endswith("/logs"):
            return web.json_response({"logs": "a line\n"})
        found = {"/api/version": {"ray_version": "2.60.0"}, "/api/jobs/": [JOB]}.get(request.path, JOB)
        return web.json_response(found)

    async def serve():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        seen.append(site._server.sockets[0].getsockname()[1])
        up.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert up.wait(30)
    yield f"http://127.0.0.1:{seen.pop()}", seen
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def test_no_proxy_is_asked_for_a_cluster(dashboard, monkeypatch, tmp_path):
    url, seen = dashboard
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of another cluster, which has gone
    with listening(503) as (proxy, asked), listening(200, body=b"{}") as (elsewhere, sent):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", elsewhere)
        for name in PROXIES:
            monkeypatch.setenv(name, proxy)
        jobs = RayJobs(url, HEADERS)
        assert [state.id for state in jobs.jobs()] == ["small-1"]
        assert list(jobs.logs("small", follow=True)) == ["a line\n"]
    assert (asked, sent) == ([], [])
    assert {path for path, _ in seen} >= {"/api/version", "/api/jobs/", "/api/jobs/small-1/logs"}
    assert {authorization for _, authorization in seen} == {"Bearer secret"}


def test_a_proxy_passes_on_https_alone_and_never_to_this_machine(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for url, asked in (
        ("https://ray.example", True),
        ("http://ray.example:8265", False),
        ("https://127.0.0.1:8265", False),
        ("https://[::1]:8265", False),
        ("https://localhost", False),
    ):
        assert by_proxy(url) is asked


def test_a_cluster_by_https_is_asked_through_a_tunnel_that_sees_no_token(monkeypatch):
    with listening(503) as (proxy, asked):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(LaunchError, match=r"https://ray\.example: no Ray cluster answers there"):
            RayJobs("https://ray.example", HEADERS)
    assert asked == [("CONNECT", "ray.example:443", None)]


def test_a_redirect_is_said_and_not_followed():
    moved = pytest.raises(LaunchError, match=r"has moved to http://127\.0\.0\.1:")
    with listening(200) as (elsewhere, sent), listening(302, {"Location": f"{elsewhere}/"}) as (url, _), moved:
        RayJobs(url, HEADERS)
    assert sent == []


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>Sign in</html>"), (200, b"[]"), (200, b"{}"), (200, b'{"ray_version": 1}'), (500, b""), (404, b"")]
    + [(200, json.dumps({"ray_version": text}).encode()) for text in ("", "next")],
)
def test_what_is_no_dashboard_is_said_to_be_none(status, body):
    with listening(status, body=body) as (url, _), pytest.raises(LaunchError, match=url):
        RayJobs(url, HEADERS)


@pytest.mark.parametrize("status", [400, 404, 405])
def test_another_server_is_not_taken_for_an_old_ray(status):
    """As where a port is forwarded to a notebook's server, or to Prometheus."""
    with (
        listening(status, body=b"<html>") as (url, _),
        pytest.raises(LaunchError, match=f"^{url}: what answers is no Ray dashboard"),
    ):
        RayJobs(url, HEADERS)


class Says:
    """Ray's client, to which a dashboard answers what it likes."""

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        return lambda *_: self.answers[name]


def jobs_of(**answers):
    jobs = object.__new__(RayJobs)
    jobs.url, jobs._client = "http://h", Says(**answers)
    return jobs


def test_a_dashboard_that_answers_oddly_is_none():
    details = JobDetails(**JOB)
    for jobs, ask in (
        (jobs_of(get_job_info=details, get_job_logs=None), lambda jobs: list(jobs.logs("small-1", follow=False))),
        (jobs_of(get_job_info=details, get_job_logs=7), lambda jobs: list(jobs.logs("small-1", follow=False))),
        (jobs_of(list_jobs=None), lambda jobs: jobs._call(lambda: [*jobs._client.list_jobs()])),
        (jobs_of(list_jobs=None), lambda jobs: jobs._call(lambda: JobDetails(**JOB | {"status": ""}))),
        (jobs_of(list_jobs=None), lambda jobs: jobs._call(lambda: json.loads("<html>"))),
    ):
        with pytest.raises(LaunchError, match=r"^http://h: what answers is no Ray dashboard"):
            ask(jobs)


def test_another_ray_than_here_is_told_before_a_job_is_sent(monkeypatch, capsys):
    plan = plan_of(parse("{name: a, epochs: 1, batch_size: 8, lr: 1e-3, run_dir: /runs, launch: {target: http://h:1}}"))
    for version, told in {"2.9.3": 1, ray.__version__: 0}.items():
        jobs, sent = jobs_of(list_jobs=[], version=version), []
        monkeypatch.setattr(jobs, "_find", lambda job: None)
        monkeypatch.setattr(jobs, "_send", lambda plan, job, sent=sent: sent.append(job))
        monkeypatch.setattr(jobs, "state", lambda job: job)
        assert (jobs.submit(plan), sent) == (plan.id, [plan.id])
        said = capsys.readouterr().err
        assert (
            said.count(f"http://h: runs Ray 2.9.3, and here is Ray {ray.__version__}: the job takes the emc2dist")
            == told
        )


def test_odd_settings_and_names_of_a_job_are_read_as_ray_does():
    odd = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "abc"}}
    details = JobDetails(**JOB | {"runtime_env": odd, "message": " ", "metadata": {"emc2dist_run": "a\x1b[2Jb"}})
    state = jobs_of(get_job_info=details, stop_job=True).stop("small-1")
    assert (state.run, state.message) == ("a\N{REPLACEMENT CHARACTER}[2Jb", "")


def test_a_target_is_taken_as_ray_takes_it_and_shows_no_password(monkeypatch):
    assert targets._url(" HTTP://h:8265") == "http://h:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", " http://h:8265 ")
    assert targets.default_target() == "http://h:8265"
    for url in ("http://me:hunter2@h:8265", "ftp://me:hunter2@h", "me:hunter2@h"):
        with pytest.raises(SpecError, match="holds credentials") as refused:
            targets.open_target(url)
        assert "hunter2" not in str(refused.value)


class Writes:
    """Ray's client for a job whose log grows; what is to be raised is raised. The last log is that of its end."""

    def __init__(self, *logs):
        self.logs = [*logs]

    def get_job_info(self, job):
        return JobDetails(**JOB | {"status": "RUNNING" if len(self.logs) > 1 else "SUCCEEDED"})

    def get_job_logs(self, job):
        log = self.logs.pop(0)
        if isinstance(log, Exception):
            raise log
        return log


def following(*logs):
    jobs = RayJobs.__new__(RayJobs)
    jobs.url, jobs._client = "http://h", Writes(*logs)
    return jobs.logs("small-1", follow=True)


LOST = [requests.ConnectionError("gone"), requests.Timeout(), RuntimeError("Request failed with status code 503: busy")]


def test_a_log_is_followed_over_lost_connections_and_each_line_is_said_once(monkeypatch):
    monkeypatch.setattr(ray_jobs, "POLL_S", 0.0)
    pieces = list(following("one\n", *LOST, "one\ntwo\n", "one\ntwo\n", "", "one\ntwo\nthree"))
    assert pieces == ["one\n", "two\n", "three"]


def test_a_log_that_nobody_gives_any_more_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_jobs, "PATIENCE_S", -1.0)
    with pytest.raises(LaunchError, match="http://h has given no answer for"):
        list(following(*LOST, ""))
    with pytest.raises(LaunchError, match="status code 400"):
        list(following(RuntimeError("Request failed with status code 400: odd"), ""))


def test_the_metadata_service_is_asked_without_a_proxy(monkeypatch):
    with listening(503) as (proxy, asked), listening(200, body=b"no notice") as (metadata, seen):
        for name in PROXIES:
            monkeypatch.setenv(name, proxy)
        with pytest.raises(LaunchError, match="gives no spot notice of EC2's but 'no notice'"):
            spot.notice(metadata)
    assert asked == []
    assert [method for method, *_ in seen] == ["PUT", "GET"]

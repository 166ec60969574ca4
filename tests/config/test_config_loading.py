"""A configuration file: what it becomes, and that every mistake in it is told at once, with its place."""

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from router.config.loaded import LoadedConfig
from router.config.loading import load, load_text
from router.config.problems import ConfigProblems
from router.model.callers import CallerRole
from router.model.policy import BalancerName, HoldPolicy, PoolPolicy, RetryPolicy, ServerPolicy
from router.model.port_policies import LogFormat, LogLevel
from router.model.topology import FailoverMode
from tests.support.certificates import Authority

ENVIRON = {
    "ADMIN": "admin-token-1234",
    "CONTROL": "control-pw",
    "ACME_PW": "acme-pw",
    "ACME_TOKEN": "acme-token-1234",
    "BETA_PW": "beta-pw",
    "BETA_TOKEN": "beta-token-1234",
}
GOOD = """\
admin: {tokens: [env:ADMIN]}
clusters:
  main:
    mode: promote
    control: {user: pointsman_control, password: env:CONTROL}
    endpoints:
      pg1: {host: one.example, zone: a}
      pg2: {host: two.example, port: 5433, weight: 300}
    hold: {window_s: 7}
tenants:
  acme:
    cluster: main
    database: acme
    login: {user: acme_app, password: env:ACME_PW}
    tokens: [env:ACME_TOKEN]
    weights: {pg2: 200}
    pool: {max_size: 5}
    limits: {balancer: two_choices}
  beta:
    cluster: main
    database: beta
    login: {user: beta_app, password: env:BETA_PW}
    tokens: [env:BETA_TOKEN]
"""


def load_good(text: str = GOOD) -> LoadedConfig:
    return load_text(text, Path("/etc/pointsman/x.yaml"), ENVIRON)


def problems_of(text: str, environ: dict[str, str] | None = None) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigProblems) as caught:
        load_text(text, Path("x.yaml"), ENVIRON if environ is None else environ)
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def test_a_good_file_becomes_a_topology_with_policies():
    config = load_good()
    cluster = config.topology.clusters["main"]
    assert [(e.name, e.cluster, e.host, e.port, e.weight) for e in cluster.endpoints] == [
        ("pg1", "main", "one.example", 5432, 100),
        ("pg2", "main", "two.example", 5433, 300),
    ]
    assert cluster.mode is FailoverMode.PROMOTE
    assert (cluster.control.user, cluster.control.password.value) == ("pointsman_control", "control-pw")
    assert cluster.policy.hold == HoldPolicy(window_s=7)
    acme = config.topology.tenants["acme"]
    assert (acme.name, acme.database, acme.login.user) == ("acme", "acme", "acme_app")
    assert dict(acme.weights) == {"pg2": 200}
    assert acme.pool == PoolPolicy(max_size=5)
    assert acme.policy.balancer is BalancerName.TWO_CHOICES
    assert [token.value for token in acme.tokens] == ["acme-token-1234"]
    assert [token.value for token in config.admin_tokens] == ["admin-token-1234"]


def test_what_is_not_given_has_the_policies_own_defaults():
    config = load_good()
    assert config.server == ServerPolicy()
    assert config.retry == RetryPolicy()
    assert config.topology.tenants["beta"].pool == PoolPolicy()
    assert (config.log.level, config.log.format) == (LogLevel.INFO, LogFormat.AUTO)


def test_a_loaded_configuration_prints_no_secret():
    printed = repr(load_good())
    assert not [value for value in ENVIRON.values() if value in printed]


MANY_MISTAKES = """\
server: {listn: x, metrics_listen: "127.0.0.1:7432"}
admin: {tokens: [env:ADMIN, hunter2]}
retry: {backoff_s: 3, budget_ratio: -1}
clusters:
  main:
    mode: promot
    control: {user: pointsman_control, password: env:NOT_SET}
    endpoints:
      pg1: {host: a, port: 99999}
      pg2: {hst: b}
    probe: {interval_s: -1, timeout_s: 0, misses: x}
    hold: {max_requests: yes}
tenants:
  acme:
    cluster: mian
    database: acme
    login: {user: pointsman_control}
    tokens: env:ACME_TOKEN
    pool: {min_size: 9, max_size: 2}
"""


def test_every_mistake_is_told_at_once_with_line_path_and_way_out():
    assert problems_of(MANY_MISTAKES) == [
        (1, "server.listn", "is an unknown key: did you mean listen?"),
        (
            1,
            "server.metrics_listen",
            "(127.0.0.1:7432) is the same address as listen: give each its own port",
        ),
        (
            2,
            "admin.tokens[1]",
            "must be a reference: env:NAME (an environment variable) or file:PATH (a file), never the secret itself",
        ),
        (3, "retry.backoff_s", "(3.0) must not exceed backoff_max_s (1.0)"),
        (3, "retry.budget_ratio", "must not be negative, not -1.0"),
        (6, "clusters.main.mode", "must be one of follow, promote, not 'promot'"),
        (
            7,
            "clusters.main.control.password",
            "environment variable NOT_SET is not set: export it before the router starts, or use file:PATH",
        ),
        (9, "clusters.main.endpoints.pg1.port", "must be at most 65535, not 99999"),
        (10, "clusters.main.endpoints.pg2.host", "is required, but missing"),
        (10, "clusters.main.endpoints.pg2.hst", "is an unknown key: did you mean host?"),
        (11, "clusters.main.probe.interval_s", "must be greater than 0, not -1.0"),
        (11, "clusters.main.probe.misses", "must be a whole number, not 'x'"),
        (11, "clusters.main.probe.timeout_s", "must be greater than 0, not 0.0"),
        (12, "clusters.main.hold.max_requests", "must be a number, not true"),
        (15, "tenants.acme.cluster", "(mian) is an unknown cluster: did you mean main?"),
        (18, "tenants.acme.tokens", "must be a list, such as [env:A_TOKEN]"),
        (19, "tenants.acme.pool.min_size", "(9) must not exceed max_size (2)"),
    ]


@pytest.mark.parametrize(
    ("section", "example"), [("server:\n  cpus: 1\n", "[2, 3]"), ("server:\n  cpus: two\n", "[2, 3]")]
)
def test_the_example_of_a_list_fits_its_place(section: str, example: str):
    ((_, path, words),) = problems_of(section + GOOD)
    assert (path, words) == ("server.cpus", f"must be a list, such as {example}")


def test_a_pool_is_not_judged_by_a_cap_that_is_wrong_itself():
    wrong = GOOD.replace("zone: a", "max_connections: few")
    assert [path for _, path, _ in problems_of(wrong)] == ["clusters.main.endpoints.pg1.max_connections"]


def test_an_endpoints_cap():
    endpoints = load_good(GOOD.replace("zone: a", "max_connections: 12")).topology.clusters["main"].endpoints
    assert [one.max_connections for one in endpoints] == [12, 80]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        replace(endpoints[0], max_connections=0)


def test_lines_are_in_the_form_editors_jump_to():
    with pytest.raises(ConfigProblems) as caught:
        load_text("clusters: {}\ntenants: {}\nadmin: {tokens: []}\n", Path("conf/x.yaml"), {})
    assert caught.value.lines()[0] == "conf/x.yaml:1: clusters: must name at least one cluster"
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        (
            "cluster: main\n    database: beta",
            "cluster: other\n    database: beta",
            "tenants.beta.cluster",
            "known here is main",
        ),
        ("weights: {pg2: 200}", "weights: {pg3: 200}", "tenants.acme.weights.pg3", "unknown endpoint of cluster main"),
        (
            "weights: {pg2: 200}",
            "weights: {pg1: 0, pg2: 0}",
            "tenants.acme.weights",
            "no endpoint with a weight above 0",
        ),
        ("weights: {pg2: 200}", "weights: {pg2: -1}", "tenants.acme.weights.pg2", "must be at least 0, not -1"),
        ("database: beta", "database: acme", "tenants.beta.database", "also used by tenant acme"),
        ("user: beta_app", "user: acme_app", "tenants.beta.login.user", "also the role of tenant acme"),
        ("user: beta_app", "user: pointsman_control", "tenants.beta.login.user", "control role of cluster main"),
        ("[env:BETA_TOKEN]", "[env:ACME_TOKEN]", "tenants.beta.tokens[0]", "also a token of tenant acme"),
        ("[env:BETA_TOKEN]", "[env:ADMIN]", "tenants.beta.tokens[0]", "also a token of the operators"),
        ("[env:BETA_TOKEN]", "[]", "tenants.beta.tokens", "at least one token"),
        (
            "two.example, port: 5433",
            "ONE.example, port: 5432",
            "clusters.main.endpoints.pg2.host",
            "same server as endpoint pg1",
        ),
        (
            "      pg2: {host: two.example, port: 5433, weight: 300}\n",
            "",
            "clusters.main.mode",
            "at least two endpoints",
        ),
        ("two.example", "two..example", "clusters.main.endpoints.pg2.host", "(two..example) is no host name"),
        ("hold: {window_s: 7}", "hold: {window_s: .inf}", "clusters.main.hold.window_s", "finite"),
        ("hold: {window_s: 7}", "hold: 7", "clusters.main.hold", "must be a section"),
        ("hold: {window_s: 7}", "hold:", "clusters.main.hold", "nothing stands there"),
        ("zone: a", "tls: {mode: verify-full}", "clusters.main.endpoints.pg1.tls.mode", "needs root_cert"),
        ("zone: a", "tls: {cert: /nope.pem}", "clusters.main.endpoints.pg1.tls", "both cert and key"),
        (
            "zone: a",
            "tls: {root_cert: nope.pem}",
            "clusters.main.endpoints.pg1.tls.root_cert",
            "/nope.pem does not exist",
        ),
        ("zone: a", "zone: 3", "clusters.main.endpoints.pg1.zone", "must be text, not 3 (put it in quotes)"),
        ("  beta:\n", "  be/ta:\n", "tenants.be/ta", "no usable name"),
        ("  beta:\n", "  acme:\n", "tenants.acme", "given twice"),
        ("zone: a", "max_connections: 4", "tenants.acme.pool.max_size", "exceeds max_connections of endpoint pg1 (4)"),
        ("zone: a", "max_connections: 4", "tenants.beta.pool.max_size", "(8) exceeds max_connections of endpoint pg1"),
        ("zone: a", "max_connections: 0", "clusters.main.endpoints.pg1.max_connections", "must be at least 1, not 0"),
        ("max_size: 5", "max_size: 5, floor: 6", "tenants.acme.pool.floor", "(6) must not exceed max_size (5)"),
        ("max_size: 5", "max_size: 5, floor: 3, ceiling: 2", "tenants.acme.pool.ceiling", "(2) must not be below"),
        ("max_size: 5", "max_size: 5, weight: 0", "tenants.acme.pool.weight", "must be greater than 0"),
        ("max_size: 5", "max_size: 81", "tenants.acme.pool.max_size", "lower it, or raise the endpoint's"),
        ("max_size: 5", "max_size: 5, max_sise: 6", "tenants.acme.pool.max_sise", "did you mean max_size?"),
        ("max_size: 5", "max_size: 2.5", "tenants.acme.pool.max_size", "must be a whole number, not 2.5"),
    ],
)
def test_each_relation_and_form_is_checked(old: str, new: str, path: str, words: str):
    assert GOOD.count(old) == 1
    found = [message for _, place, message in problems_of(GOOD.replace(old, new)) if place == path]
    assert any(words in message for message in found), problems_of(GOOD.replace(old, new))


def test_floors_of_all_tenants_must_fit_under_each_endpoints_cap() -> None:
    text = GOOD.replace("max_size: 5", "max_size: 5, floor: 5").replace("zone: a", "max_connections: 8")
    text = text.replace("database: beta", "database: beta\n    pool: {floor: 4}")
    assert [(place, message) for _, place, message in problems_of(text)] == [
        (
            "clusters.main.endpoints.pg1.max_connections",
            "(8) is less than the floors of its tenants, 9 in all (acme: 5, beta: 4): "
            "raise it, or lower pool.floor of tenants",
        )
    ]


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        (
            (("{host: one.example, zone: a}", "{host: two.example, port: abc}"), ("port: 5433", "port: 5432")),
            ["clusters.main.endpoints.pg1.port"],
        ),
        ((("admin: {", "server: {listen: 1, admin_listen: '127.0.0.1:7432'}\nadmin: {"),), ["server.listen"]),
        ((("zone: a", "tls: {mode: verify-full, root_cert: 7}"),), ["clusters.main.endpoints.pg1.tls.root_cert"]),
        ((("zone: a", "weight: x"), ("weight: 300", "weight: x"), ("{pg2: 200}", "{pg1: 0, pg2: 0}")),
         ["clusters.main.endpoints.pg1.weight", "clusters.main.endpoints.pg2.weight"]),
        ((("{host: two.example, port: 5433, weight: 300}", "7"),), ["clusters.main.endpoints.pg2"]),
        (
            (("database: acme", "database: one\n    isolation: maybe"),
             ("database: beta", "database: one\n    isolation: schema")),
            ["tenants.acme.isolation"],
        ),
    ],
)  # fmt: skip
def test_no_relation_is_judged_by_a_value_that_was_wrong_by_itself(
    changes: tuple[tuple[str, str], ...], paths: list[str]
):
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert [path for _, path, _ in problems_of(text)] == paths


@pytest.mark.parametrize("address", ["7432", "localhost", "::1:7432", "host:70000", "host:x", ":7432", "unix:"])
def test_addresses_that_cannot_be_listened_on(address: str):
    ((_, path, _),) = problems_of(f"server: {{listen: '{address}'}}\n{GOOD}")
    assert path == "server.listen"


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::1]:7432", "localhost:0", "unix:/run/pointsman.sock"])
def test_addresses_that_can(address: str):
    server = f"server: {{listen: '{address}', metrics_listen: '', allow_plaintext: true}}"
    assert load_good(f"{server}\n{GOOD}").server.listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:7431", "router.example.net:0", "10.0.0.1:7431", "[::2]:1"])
@pytest.mark.parametrize("port", ["listen", "admin_listen"])
def test_plain_text_leaves_the_machine_only_when_that_is_allowed(address: str, port: str):
    ((_, path, words),) = problems_of(f"server: {{{port}: '{address}'}}\n{GOOD}")
    assert path == f"server.{port}"
    assert "allow_plaintext: true" in words


@pytest.mark.parametrize("address", ["127.0.0.2:1", "[::1]:7432", "localhost:0", "unix:/run/pointsman.sock"])
def test_plain_text_may_stay_on_the_machine(address: str):
    assert load_good(f"server: {{listen: '{address}'}}\n{GOOD}").server.listen == address


def test_files_of_tls_start_at_the_configuration_and_are_tried(tmp_path: Path):
    authority = Authority()
    authority.issue(dns=["localhost"]).write(tmp_path / "a.pem", tmp_path / "a.key")
    authority.issue(dns=["localhost"]).write(tmp_path / "b.pem", tmp_path / "b.key")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "empty").write_text("")
    (tmp_path / "half").write_bytes(authority.pem + authority.pem[:300])
    (tmp_path / "other").write_bytes(authority.pem.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"))

    def load(tls: str):
        return load_text(f"server: {{listen: '0.0.0.0:1', tls: {{{tls}}}}}\n{GOOD}", tmp_path / "x.yaml", ENVIRON)

    tls = load("cert: a.pem, key: a.key, client_ca: ca.pem").server.tls
    assert (tls.cert, tls.client_ca) == (str(tmp_path / "a.pem"), str(tmp_path / "ca.pem"))
    for wrong, words in (
        ("cert: a.pem, key: b.key", "not the certificate's"),
        ("cert: a.pem, key: none.key", "no such file"),
        ("cert: a.pem, key: empty", "no PEM text"),
        ("cert: a.pem, key: a.key, client_ca: empty", "holds no certificates"),
        ("cert: a.pem, key: a.key, client_ca: half", "not only whole ones"),
        ("cert: a.pem, key: a.key, client_ca: other", "holds no certificates"),
        ("cert: a.pem", "together"),
        ("client_ca: ca.pem", "plain text"),
    ):
        with pytest.raises(ConfigProblems) as caught:
            load(wrong)
        assert words in "\n".join(caught.value.lines()), wrong


def test_tenants_may_share_a_database_when_both_say_so():
    shared = GOOD.replace("database: beta", "database: acme, isolation: schema".replace(", ", "\n    "))
    ((_, path, _),) = problems_of(shared)
    assert path == "tenants.acme.database"
    both = shared.replace("    weights", "    isolation: schema\n    weights")
    assert load_good(both).topology.tenants["beta"].database == "acme"


def test_names_are_text_as_written():
    config = load_good(GOOD.replace("  beta:\n", "  on:\n"))
    assert set(config.topology.tenants) == {"acme", "on"}


def test_yaml_anchors_and_merges_work_and_do_not_count_as_given_twice():
    merged = GOOD.replace("pool: {max_size: 5}", "pool: &p {max_size: 5}").replace(
        "database: beta", "database: beta\n    pool: {<<: *p, min_size: 1}"
    )
    assert load_good(merged).topology.tenants["beta"].pool == PoolPolicy(min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 0, "empty"),
        ("# nothing\n", 0, "empty"),
        ("- a\n", 1, "must hold sections"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: &x\n  b: *x\n", 2, "refers to itself"),
        ("a: \x07", 0, "not valid YAML"),
        ("a: *nowhere", 1, "undefined alias"),
    ],
)
def test_text_that_is_no_configuration(text: str, line: int, words: str):
    assert any(at == line and words in message for at, _, message in problems_of(text)), problems_of(text)


def test_an_unusable_file_is_one_problem(tmp_path: Path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    for path, words in [
        (tmp_path / "absent.yaml", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "latin.yaml", "not UTF-8"),
    ]:
        with pytest.raises(ConfigProblems, match=words):
            load(path, ENVIRON)


class TestSecrets:
    def test_a_plain_secret_is_refused_and_never_repeated(self):
        found = problems_of(GOOD.replace("env:BETA_PW", "hunter2").replace("[env:BETA_TOKEN]", "[12345678]"), ENVIRON)
        assert {path for _, path, _ in found} == {"tenants.beta.login.password", "tenants.beta.tokens[0]"}
        assert not [message for _, _, message in found if "hunter2" in message or "12345678" in message]

    def test_a_login_written_as_text_is_not_repeated(self):
        found = problems_of(GOOD.replace("{user: beta_app, password: env:BETA_PW}", "hunter2"))
        assert "hunter2" not in str(found)

    def test_a_yaml_error_does_not_quote_the_line(self):
        assert "hunter2" not in str(problems_of("a: {b: hunter2\nc: d"))

    def test_a_file_is_relative_to_the_configuration_and_loses_its_newline(self, tmp_path: Path):
        (tmp_path / "beta.password").write_text("from-file\n")
        path = tmp_path / "x.yaml"
        path.write_text(GOOD.replace("env:BETA_PW", "file:beta.password"))
        assert load(path, ENVIRON).topology.tenants["beta"].login.password.value == "from-file"

    @pytest.mark.parametrize(
        ("content", "words"), [(None, "cannot be read: no such file"), (b"", "is empty"), (b"\xff", "not UTF-8")]
    )
    def test_a_file_without_a_secret(self, tmp_path: Path, content: bytes | None, words: str):
        if content is not None:
            (tmp_path / "s").write_bytes(content)
        path = tmp_path / "x.yaml"
        path.write_text(GOOD.replace("env:BETA_PW", "file:s"))
        with pytest.raises(ConfigProblems, match=words):
            load(path, ENVIRON)

    def test_an_empty_variable_is_no_secret(self):
        ((_, path, message),) = problems_of(GOOD, {**ENVIRON, "BETA_PW": ""})
        assert (path, message) == ("tenants.beta.login.password", "env:BETA_PW is empty")

    def test_a_token_that_metadata_cannot_carry_is_refused(self):
        ((_, path, message),) = problems_of(GOOD, {**ENVIRON, "BETA_TOKEN": "späce "})
        assert path == "tenants.beta.tokens[0]"
        assert "printable ASCII" in message

    def test_a_login_without_password_is_allowed(self):
        assert load_good(GOOD.replace(", password: env:BETA_PW", "")).topology.tenants["beta"].login.password is None


def test_hundreds_of_tenants_with_file_secrets_load_from_a_read_only_file(tmp_path: Path):
    one = "  t{0}: {{cluster: main, database: d{0}, login: {{user: u{0}}}, tokens: [file:t/{0}]}}\n"
    (tmp_path / "t").mkdir()
    count = 300
    for number in range(count):
        (tmp_path / "t" / str(number)).write_text(f"token-{number}")
    path = tmp_path / "x.yaml"
    path.write_text(GOOD + "".join(one.format(number) for number in range(count)))
    path.chmod(stat.S_IRUSR)
    assert len(load(path, ENVIRON).topology.tenants) == count + 2


def with_callers(*callers: str, server: str = "", admin: str = "") -> str:
    text = GOOD.replace("tokens: [env:BETA_TOKEN]", f"callers: [{', '.join(callers)}]")
    return f"{server}\n{text.replace('admin: {tokens: [env:ADMIN]', f'admin: {{tokens: [env:ADMIN]{admin}')}"


JWT = "server: {jwt: {keys: 'https://login.example.net/keys', issuer: i, audience: a}}"
HASH = "sha256:" + "0a" * 32


def test_callers_have_roles():
    hashed_reader = f"{{token: '{HASH}', role: reader}}"
    config = load_good(with_callers("{subject: x}", hashed_reader, "{token: env:BETA_TOKEN}", server=JWT))
    found = {str(one.id)[:10]: one.role for one in config.topology.tenants["beta"].callers}
    hashed = hashlib.sha256(ENVIRON["BETA_TOKEN"].encode()).hexdigest()[:4]
    writer, reader = CallerRole.WRITER, CallerRole.READER
    assert found == {"jwt:x": writer, "token:0a0a": reader, f"token:{hashed}": writer}
    assert ENVIRON["BETA_TOKEN"] not in repr(config.topology.tenants["beta"].callers)


@pytest.mark.parametrize(
    ("callers", "place", "words"),
    [
        (("{}",), "", "exactly one of spiffe, dns, subject and token"),
        (("{subject: x, token: env:BETA_TOKEN}",), "", "exactly one"),
        (("{subject: x}", "{subject: x, role: reader}"), "", "twice"),
        (("{subject: x, role: admin}",), ".role", "reader"),
        (("{token: hunter2}",), ".token", "never the token"),
        (("{token: 'sha256:ABC'}",), ".token", "64 hexadecimal digits"),
        (("{token: env:ACME_TOKEN}",), "", "also a token of tenant acme"),
        (("{token: env:ADMIN}",), "", "also a token of the operators"),
        (("{spiffe: spiffe://x.example/a}",), "", "server.tls.client_ca"),
        (("{dns: x.example}",), "", "server.tls.client_ca"),
    ],
)
def test_callers_that_cannot_be(callers: tuple[str, ...], place: str, words: str):
    found = problems_of(with_callers(*callers, server=JWT))
    assert any(path.startswith("tenants.beta.callers") and path.endswith(place) and words in text
               for _, path, text in found), found
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    "caller",
    ["{spiffe: 'http://x/a'}", "{spiffe: 'spiffe://X.example/a'}", "{spiffe: 'spiffe://x.example'}",
     "{spiffe: 'spiffe://x.example/a/'}", "{dns: '*.example'}", "{dns: 'A.example'}", "{dns: 'a..example'}"],
)
def test_names_that_no_certificate_could_have(caller: str):
    assert any("must" in text and "not '" in text for _, _, text in problems_of(with_callers(caller, server=JWT)))


def test_a_subject_needs_signed_tokens():
    ((_, path, words),) = problems_of(with_callers("{subject: x}"))
    assert path == "tenants.beta.callers[0].subject"
    assert "server.jwt" in words


@pytest.mark.parametrize(
    ("jwt", "words"),
    [
        ("keys: none.json, issuer: i, audience: a", "does not exist"),
        ("keys: 'https://x/y', issuer: i", "needs issuer and audience"),
        ("keys: 'http://x/y', issuer: i, audience: a", "https://"),
    ],
)
def test_signed_tokens_that_would_prove_nothing(jwt: str, words: str):
    ((_, path, text),) = problems_of(f"server: {{jwt: {{{jwt}}}}}\n{GOOD}")
    assert path.startswith("server.jwt")
    assert words in text

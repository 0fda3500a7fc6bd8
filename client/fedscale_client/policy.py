"""What a site allows: ``policy.toml`` in the node's home, which no job and no message of a coordinator can override.

Without the file everything that a plan may ask is allowed and written into the ledger. A file that cannot be read allows
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedscale.errors import ConfigError, Conflict, PlanError, PolicyRefusal
from fedscale.tables import NAME, Document, dotted
from fedscale_client.home import NodeHome, exclusive, parse, write_toml
from fedscale_client.ledger.claims import Cap

if TYPE_CHECKING:
    from fedscale.learner import Phase
    from fedscale.plan import Plan
    from fedscale.privacy.dp import DP

Unit: TypeAlias = Literal["record", "patient", "node"]
Digest: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FORMS = {"^[0-9a-f]{64}$": "this is the SHA-256 of an app's bundle, 64 hex digits"}
OWNER = "only the site's owner can change that"
CHANGE_SECONDS = 30.0


class DatasetPolicy(BaseModel):
    """What a site allows with one dataset.

    Args:
        epsilon: the most it gives away, over everything that ever leaves; without it nothing is refused for its cost.
        delta: at this delta.
        units: whose presence a job may hide; with ``epsilon`` exactly one, because a cap is for one. Empty: any.
        population: whose data it is; datasets of the same people share one name and one budget. By default the dataset's own.
        metrics: what may leave of rows that are held out for evaluation, which no epsilon covers, where training is private: ``none``,
            ``pooled`` by secure aggregation, or ``exact``; by default ``pooled`` where there is a cap, else ``exact``.
        require_dp: whether nothing is trained without differential privacy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)
    delta: float = Field(1e-5, gt=0, lt=1)
    units: tuple[Unit, ...] = ()
    population: str = Field("", pattern=f"^$|{NAME}")
    metrics: Literal["none", "pooled", "exact"] | None = None
    require_dp: bool = False

    @model_validator(mode="after")
    def _one_unit(self) -> DatasetPolicy:
        if self.epsilon is not None and len(self.units) != 1:
            raise ValueError('a cap is for one unit of privacy: write units = ["record"], ["patient"] or ["node"]')
        return self

    @property
    def cap(self) -> Cap | None:
        """The cap, if there is one."""
        return None if self.epsilon is None else Cap(self.epsilon, self.delta, self.units[0])

    def check(self, dp: DP, phase: Phase, *, masked: bool) -> None:
        """Refuse a private task that is not allowed whatever it costs.

        Raises:
            PolicyRefusal: another unit than the site's, noise that is somebody else's where there is a cap, or metrics that may not leave.
        """
        if self.units and dp.unit not in self.units:
            hint = f'set privacy.unit = "{self.units[0]}"'
            raise PolicyRefusal(f"this site does not count its privacy by the {dp.unit}", where="units", hint=hint)
        if self.epsilon is not None and dp.mechanism == "ftrl":
            hint = 'set privacy.mechanism = "fedavg" and secagg.enabled = true'
            raise PolicyRefusal("this site cannot see that the coordinator adds the noise", where="epsilon", hint=hint)
        metrics = self.metrics or ("exact" if self.epsilon is None else "pooled")
        if phase == "evaluate" and (metrics == "none" or (metrics == "pooled" and not masked)):
            hint = "set evaluate.every = 0" if metrics == "none" else "set secagg.enabled = true, or evaluate.every = 0"
            raise PolicyRefusal("this site does not let such metrics leave", where="metrics", why=f"it allows: {metrics}", hint=hint)


class Policy(BaseModel):
    """The file ``policy.toml``.

    Args:
        paused: whether nothing is done and nothing leaves, until the owner lets it go on.
        require_secagg: whether answers leave only masked, by secure aggregation.
        require_dp: whether answers leave only with differential privacy.
        min_cohort: fewest sites in a sum of secure aggregation.
        led: whether the program that leads a run may be told each of this site's answers by itself; by default only where neither
            ``require_secagg`` nor ``require_dp`` holds. Where it may, ``require_secagg`` is for all other runs.
        curious_server: whether secure aggregation may take the coordinator to be merely curious, and not malicious.
        projects: names of the projects that may ask; empty: any.
        apps: SHA-256 of the app bundles that may run; empty: any.
        datasets: what holds for a dataset, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paused: bool = False
    require_secagg: bool = False
    require_dp: bool = False
    min_cohort: int = Field(3, ge=2)
    led: bool | None = None
    curious_server: bool = False
    projects: tuple[str, ...] = ()
    apps: tuple[Digest, ...] = ()
    datasets: dict[str, DatasetPolicy] = {}

    def of(self, dataset: str) -> DatasetPolicy:
        """What holds for a dataset."""
        return self.datasets.get(dataset, DatasetPolicy())

    def population(self, dataset: str) -> str:
        """Whose data a dataset is."""
        return self.of(dataset).population or dataset

    def going(self) -> None:
        """Refuse everything while the owner has paused the site.

        Raises:
            PolicyRefusal: it is paused.
        """
        if self.paused:
            raise PolicyRefusal("this site is paused by its owner", where="paused", hint="ask the site when it will go on, or leave it out")

    def check(self, plan: Plan, phase: Phase, project: str, app: str) -> None:
        """Refuse what is not allowed whatever it costs.

        Args:
            plan: what the run is.
            phase: of the task.
            project: the project whose coordinator asks.
            app: SHA-256 of the app's bundle.

        Raises:
            PolicyRefusal: with the first rule that is broken.
        """
        own, dp = self.of(plan.job.data), plan.privacy
        self.going()
        if self.projects and project not in self.projects:
            raise PolicyRefusal("this site does not take part in this project", where="projects", hint=OWNER)
        if self.apps and app not in self.apps:
            raise PolicyRefusal("this site has not approved this app", where="apps", why=f"its digest is {app[:12]}", hint=OWNER)
        leads = phase == "message"
        if leads and self.led is False:
            raise PolicyRefusal("this site does not let its answers be seen one by one", where="led", hint=OWNER)
        if self.require_secagg and not plan.secagg.enabled and not (leads and self.led):
            raise PolicyRefusal("this site answers with secure aggregation only", where="require_secagg", hint="set secagg.enabled = true")
        if dp is None and (self.require_dp or own.require_dp):
            raise PolicyRefusal("this site answers with differential privacy only", where="require_dp", hint="add [privacy] to the job")
        if dp is not None:
            own.check(dp, phase, masked=plan.secagg.enabled)

    def check_sum(self, plan: Plan, nodes: int) -> None:
        """Refuse secure aggregation in which this site would see, only after answers were given, that it is not as its owner wants it.

        Raises:
            PolicyRefusal: as the protocol's own rules, of sums over at most so many nodes.
        """
        if plan.secagg.enabled and plan.secagg.profile == "curious" and not self.curious_server:
            why = "the server must be assumed malicious here"
            raise PolicyRefusal(
                "this site does not take part in such secure aggregation", where="curious_server", why=why, hint='set secagg.profile = "malicious"'
            )
        if plan.secagg.enabled and nodes < self.min_cohort:
            why = f"the site asks for at least {self.min_cohort}"
            raise PolicyRefusal(f"a sum over {nodes} nodes is not opened", where="min_cohort", why=why, hint="ask more nodes, or leave this site out")


def load(home: NodeHome, changes: Iterable[str] = ()) -> Policy:
    """The policy of a site.

    Args:
        home: the node's home.
        changes: ``a.b=value`` settings that win over the file.

    Raises:
        ConfigError: with file and line of the first problem.
    """
    file = home.policy_file
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return Document.of(text, str(file), changes, FORMS).read(Policy)
    except PlanError as error:
        raise ConfigError(error.what, where=error.where, why=error.why, hint=error.hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the site's policy cannot be read", where=str(file), why=type(error).__name__) from None


def without(policy: Policy, names: Iterable[str]) -> Policy:
    """The policy without some settings, each ``a.b``, which go back to their defaults.

    Raises:
        ConfigError: there is no such setting, or what is left contradicts itself.
    """
    tree = policy.model_dump(mode="json", exclude_defaults=True)
    for name in names:
        *path, last = dotted(name)
        table: Any = tree
        for part in path:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            raise ConfigError(f"'{name}' is not set", hint="see what is: fedscale node policy show")
        del table[last]
    return parse(Policy, tree, "policy.toml")


def save(home: NodeHome, policy: Policy) -> None:
    """Replace the policy of a site; a running node reads it before its next task."""
    write_toml(home.policy_file, policy.model_dump(mode="json", exclude_defaults=True))


def change(home: NodeHome, make: Callable[[], Policy]) -> Policy:
    """Replace the policy of a site by what is made of the one before, which nobody else changes meanwhile.

    Args:
        home: the node's home.
        make: reads the policy and returns the next one.

    Raises:
        Conflict: somebody else is changing it all the time.
    """
    busy = Conflict("somebody else is changing the site's policy", where=str(home.policy_file), hint="try again in a moment")
    with exclusive(home.path / "policy.lock", CHANGE_SECONDS, busy):
        rules = make()
        save(home, rules)
    return rules

"""``pai --dry-run``: what a command would do and about what it would cost; nothing is written."""

from collections.abc import Sequence

from pai.compose import Job
from pai.estimate import Estimator, JobCost, measured_speed, recorded_speed
from pai.plan import Plan
from pai.records import is_held, read_record

_STATUS = {"completed": "done", "failed": "failed"}


def describe(jobs: Sequence[Job], plans: Sequence[Plan]) -> str:
    """Return the list of jobs with their states and costs, the sums and an estimate of the time."""
    estimator = Estimator()
    costs = [estimator.cost(plan) for plan in plans]
    records = [read_record(job.run_dir) for job in jobs]
    done = [(cost, record) for cost, record in zip(costs, records, strict=True)
            if record is not None and record["status"] == "completed"]  # fmt: skip
    known = {key for cost, _ in done for key in cost.shared}
    lines, todo, score, train, select_s, computed = [], 0, 0.0, 0.0, 0.0, 0
    for job, cost, record in zip(jobs, costs, records, strict=True):
        state = "missing" if record is None else _STATUS.get(record["status"], "interrupted")
        if state == "interrupted" and is_held(job.run_dir):
            state = "running"
        here = _unshared(cost, known)
        if state != "done":
            todo, score, train = todo + 1, score + here, train + cost.train
            computed, select_s = computed + (here > 0), select_s + cost.select_s
            known |= set(cost.shared)
        note = "" if state == "done" else (
            f"  {_flops(here) if here or not cost.score else 'shared'} scoring, "
            f"{_flops(cost.train)} training"
        )  # fmt: skip
        lines.append(f"{state:12} {job.run_dir}{note}")
        if not set(job.run_dir.name.split(",")) <= set(job.name.split(",")):  # cut, or escaped
            lines.append(f"{'':12} {job.name}")
    lines += [
        "",
        f"{_count(len(jobs), 'job')}: {len(jobs) - todo} done, {todo} to run",
        f"{_count(computed, 'score computation')}; the cache shares them between jobs (what it "
        f"holds from other sweeps is not looked up)",
        f"{_flops(score)} for scoring, {_flops(train)} for training (dense network, 2 per "
        f"multiply-accumulate, backward = 2 forward)",
    ]
    if todo:
        speed, source = recorded_speed(done), f"{_count(len(done), 'completed run')} of this sweep"
        if speed is None:
            speed = measured_speed(plans[0], estimator.forward(plans[0]))
            source = f"training steps of the first job's network just now on {plans[0].device}"
        time = _duration((score + train) / speed + select_s)
        lines.append(
            f"estimate: {time} for one job after another, at {_flops(speed)}/s, from {source}; "
            f"{_duration(select_s)} of it for selecting masks, one of which was timed just now; "
            f"start-up, loading, evaluation and the report of the mask are not in it"
        )
    return "\n".join(lines)


def _unshared(cost: JobCost, known: set[str]) -> float:
    return 0.0 if cost.shared and set(cost.shared) <= known else cost.score


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next((s, u) for s, u in units if seconds >= 2 * s or s == 1)
    amount = seconds / size
    return f"{amount:.{0 if amount >= 10 else 1}f} {unit}"


def _flops(number: float) -> str:
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= 0.9995 * size:  # rounded to three digits it is
            return f"{number / size:.3g} {unit}FLOP"
    return f"{number / 1e6:.3g} MFLOP"

"""What the tests of reports share: twelve kept runs, and what ``lab`` leaves beside a notebook."""

import json

from bulk_hands import keep

from kdlab.cli import runs


def keep_twelve(out):
    """Two temperatures × two weights × three seeds; one run failed after its first record."""
    for t in (1.0, 4.0):
        for alpha in (0.5, 0.9):
            for seed in range(3):
                values = {"temperature": t, "alpha": alpha, "seed": seed}
                records = [
                    {"name": "accuracy", "value": t / 10 + alpha + seed / 100},
                    {"name": "counts", "before": seed, "after": 7},
                ]
                if (t, alpha, seed) == (4.0, 0.9, 2):
                    error = {"status": runs.FAILED, "reason": "MemoryError: <b>no & room</b>"}
                    keep(out, values, records[:1], **error)
                else:
                    keep(out, values, records)
    return out


def tell(path, values, claims, **machine):
    """Write what ``lab`` leaves beside a notebook."""
    claims = [{"sentence": s, "holds": h, "value": 1.0, "wanted": "-"} for s, h in claims.items()]
    machine = {"name": "abacus", "device": "cpu", "threads": 2, "torch": "2.9"} | machine
    told = {"parameters": values, "claims": claims, "machine": machine, "kdlab": "9"}
    path.write_text(json.dumps(told))

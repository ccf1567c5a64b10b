"""A plug-in for lmms-eval, found by `LMMS_EVAL_PLUGINS=asgkit.evals.lmms`; lmms-eval itself is not needed to import it.

    LMMS_EVAL_PLUGINS=asgkit.evals.lmms python -m lmms_eval --model asgkit_backbone --tasks realworldqa \\
        --model_args run=results/runs/NAME,role=solver,images=real,out=results/bench/NAME/solver

`asgkit benchmark vqa` does the same for base and evolved at once and compares them.
"""

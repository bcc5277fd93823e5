"""What runs in the pods of a TuningJob: `python -m llm_tuning.pod check | train | report`.

    check    before any GPU is asked for: every check of a run that needs no torch, in the operator image
    train    the run itself, in the trainer image; started again, it resumes
    report   the result of a finished run once more, for a training pod whose result was lost

Each reads one environment variable (the contract's PodInput), and leaves its result as the container's termination
message, where the operator finds it in the pod's status. `contract` is all that the operator imports from here.
"""

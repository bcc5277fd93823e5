"""The fine-tuning API: OpenAI's files, fine-tuning and chat endpoints over TuningJobs and InferenceServices.

A thin face: files lie on the claim, a job is a TuningJob, a fine-tuned model is a route of an InferenceService.
Importing this package loads no web framework: `app` and `routes` do.
"""

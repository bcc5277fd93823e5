"""Good and bad specs of each kind, made by walking the CRD's schema, and changes to an applied one.

The API server and pydantic are asked about each; the client refuses and takes what pydantic does, since it uses the
same models. What bounds and types say is derived; what patterns mean and what fields mean together is written by hand.
"""

from tests.support.spec_corpus.corpus import Case, Change, Corpus
from tests.support.spec_corpus.inference_service import INFERENCE_SERVICE
from tests.support.spec_corpus.tuning_job import TUNING_JOB

CORPORA = (TUNING_JOB, INFERENCE_SERVICE)

__all__ = ["CORPORA", "INFERENCE_SERVICE", "TUNING_JOB", "Case", "Change", "Corpus"]

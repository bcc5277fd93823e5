"""All that is vLLM's.

command      its command line: one for a machine of one's own and for the pod of an InferenceService
pod          how it is started in the pod of an InferenceService
environment  its environment variables, and the size of its cache on a CPU
adapter      which adapters it can load, and on which base
tensor_names whether it finds their tensors by their names
limits       what it cannot run of a base
engine       load, unload, list, metrics of one that runs
probe        what a proof asks one that runs
stream       the form of its streams and errors
log          the error that its log names
install      a Python that has it, on a machine of one's own
"""

NAME = "vllm"
"""Of its container, and of its group in the spec."""

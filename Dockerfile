# The operator, the part of llm_tuning without torch (pods that check data and read results), and the adapter agent.
# Build context: the root of the repository. Any engine will do: docker build -t llm-tuning/operator .
# A release names the base by its digest: --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}
# A name for the user: programs that ask who they are fail without one.
RUN echo "tuning:x:65532:65532::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "tuning:x:65532:" >> /etc/group \
    && python -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/llm-tuning \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Nothing of uv's cache in a layer; a build that mounts a cache of its own there passes UV_NO_CACHE=0.
ARG UV_NO_CACHE=1
COPY requirements/install.sh requirements/uv.txt requirements/operator.txt /opt/requirements/
RUN sh /opt/requirements/install.sh operator.txt
# Our code last: a change of it is a layer of a few hundred kilobytes.
COPY llm_tuning /opt/llm-tuning/llm_tuning
COPY operator/tuning_operator /opt/llm-tuning/tuning_operator
# Bytecode that is never checked against its source: the root file system is read-only where this runs.
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/llm-tuning \
    && printf '#!/bin/sh\nexec python -m llm_tuning.codes.tune_llm "$@"\n' > /usr/local/bin/tune-llm \
    && chmod 755 /usr/local/bin/tune-llm
LABEL org.opencontainers.image.title="LLM tuning operator" \
      org.opencontainers.image.description="The operator of TuningJobs and InferenceServices, and its small pods" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
ENV HOME=/tmp
WORKDIR /tmp
USER 65532:65532
CMD ["python", "-m", "tuning_operator"]

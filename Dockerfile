# One image for every service: `keepwarm service gateway|scheduler|agent|jobs` chooses what a container is.
FROM python:3.11-slim-bookworm

# git: fal.toolkit.clone_repository; libgomp: what CPU wheels of ML packages expect of the system.
RUN apt-get update \
 && apt-get install -y --no-install-recommends git libgomp1 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/keepwarm
COPY requirements/bootstrap.lock requirements/runtime.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/bootstrap.lock \
 && uv pip install --system --no-cache --require-hashes -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY sdk sdk
COPY gateway gateway
COPY scheduler scheduler
COPY gpu_worker gpu_worker
COPY envbuilder envbuilder
COPY keepwarm keepwarm
RUN uv pip install --system --no-cache --no-deps ./sdk . \
 && useradd --create-home --uid 1000 keepwarm \
 && install -d -o keepwarm -g keepwarm /var/lib/keepwarm \
 && ln -s /var/lib/keepwarm/data /data

USER keepwarm
ENV KEEPWARM_DATA=/var/lib/keepwarm \
    KEEPWARM_BIND_HOST=0.0.0.0 \
    KEEPWARM_BIND_PORT=8787
VOLUME /var/lib/keepwarm
ENTRYPOINT ["keepwarm"]
CMD ["up", "--host", "0.0.0.0"]

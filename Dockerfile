# maisi serve, on CPUs: slim, without root, with a read-only root where /data is a volume.
#   docker build -t maisi . && docker run --read-only --tmpfs /tmp -v maisi:/data -v ./token:/run/secrets/token:ro -p 8000:8000 maisi
FROM python:3.11-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints constraints
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/maisi \
    && /opt/maisi/bin/pip install --no-cache-dir --constraint constraints/cpu.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu '.[serve,dicom]' \
    && /opt/maisi/bin/maisi --version

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data maisi && mkdir /data && chown maisi /data
COPY --from=build /opt/maisi /opt/maisi
ENV PATH=/opt/maisi/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/health/ready', timeout=4)"]
ENTRYPOINT ["maisi", "serve", "--host", "0.0.0.0", "--port", "8000", "--data", "/data/jobs"]
CMD ["--token-file", "/run/secrets/token"]

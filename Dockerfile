FROM python:3.11-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY raftkv raftkv
COPY shards shards
RUN python -m venv /opt/raftkv \
 && /opt/raftkv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[server]"

FROM python:3.11-slim
COPY --from=build /opt/raftkv /opt/raftkv
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin raftkv \
 && install -d -o raftkv -g raftkv /var/lib/raftkv
ENV PATH=/opt/raftkv/bin:$PATH PYTHONUNBUFFERED=1
USER raftkv
VOLUME /var/lib/raftkv
# Clients, nodes, metrics and probes, by custom: the configuration says.
EXPOSE 7401 7501 7601
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 \
  CMD ["raftkv", "health", "--config", "/etc/raftkv/node.toml"]
ENTRYPOINT ["raftkv"]
CMD ["serve", "--config", "/etc/raftkv/node.toml"]

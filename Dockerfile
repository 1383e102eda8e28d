# syntax=docker/dockerfile:1
# docker build --target airflow|training|serving .
# Each image installs its part of requirements.lock: the lock constrains, the extra selects.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 UV_NO_CACHE=1
WORKDIR /opt/storyrec
COPY requirements.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir "uv==$(sed -n 's/^uv==//p' requirements.lock)" \
 && useradd --create-home --uid 10001 storyrec
COPY training training

# Airflow schedules and calls the steps of a second environment, so that its own pins bind nobody else.
FROM base AS airflow
RUN uv venv /opt/airflow && uv pip install --python /opt/airflow --constraint requirements.lock ".[airflow]" \
 && uv venv /opt/steps && uv pip install --python /opt/steps --constraint requirements.lock ".[features]"
COPY dags dags
COPY feature_repo feature_repo
ENV PATH=/opt/airflow/bin:$PATH \
    STORYREC_PYTHON=/opt/steps/bin/python \
    STORYREC_FEATURE_REPO=/opt/storyrec/feature_repo \
    AIRFLOW_HOME=/opt/airflow/home \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/storyrec/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/storyrec/dags/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    PYTHONPATH=/opt/storyrec/dags
RUN mkdir -p /opt/airflow/home && chown -R storyrec /opt/airflow/home
USER storyrec
CMD ["airflow", "standalone"]

# The Kubeflow components run here; torch comes by pip, whose settings decide between CPU and GPU builds.
FROM base AS training
RUN pip install --no-cache-dir "$(grep '^torch==' requirements.lock)" \
 && uv pip install --system --constraint requirements.lock ".[training]"
ARG SPARK=
RUN if [ -n "$SPARK" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends default-jre-headless && rm -rf /var/lib/apt/lists/* \
      && uv pip install --system --constraint requirements.lock ".[spark]"; \
    fi
COPY components components
USER storyrec
ENTRYPOINT ["storyrec"]

FROM base AS serving
RUN uv pip install --system --constraint requirements.lock ".[serving]"
COPY feature_repo feature_repo
ENV STORYREC_FEATURE_REPO=/opt/storyrec/feature_repo
USER storyrec
EXPOSE 8080
ENTRYPOINT ["storyrec", "serve"]

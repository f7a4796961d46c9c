# Stand-ins for images of docker/compose.yaml, with the parts that it uses.
FROM keyman-stand-in/services AS services
COPY passwd /etc/passwd
ENV LANG=C.UTF-8

FROM services AS haproxy
USER 99:99

FROM services AS prometheus
RUN ["bash", "-c", "mkdir /prometheus && chown 65534:65534 /prometheus"]
USER 65534:65534

FROM services AS postgres
COPY postgres /usr/local/bin/docker-entrypoint.sh
ENV PGDATA=/var/lib/postgresql/data
RUN ["bash", "-c", "mkdir -p /var/lib/postgresql/data /var/run && chown 999:999 /var/lib/postgresql/data"]
# A tmpfs takes its mode from the directory on which it is mounted.
RUN ["bash", "-c", "mkdir --mode=1777 /var/run/postgresql"]
RUN ["bash", "-c", "ln -s /usr/lib/postgresql/*/bin/{psql,pg_isready} /usr/local/bin/"]
USER 999:999
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]

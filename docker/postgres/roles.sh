# The image sources this when it creates the database. It creates one user for the migrations, who owns the schema, and
# one for each plane. `keyman db upgrade` creates the tables and grants the planes their rights.
psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set owner_password `cat /secrets/keyman_owner_password`
\set management_password `cat /secrets/keyman_management_password`
\set resolver_password `cat /secrets/keyman_resolver_password`
\set gateway_password `cat /secrets/keyman_gateway_password`
CREATE ROLE keyman_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE keyman_management LOGIN PASSWORD :'management_password';
CREATE ROLE keyman_resolver LOGIN PASSWORD :'resolver_password';
CREATE ROLE keyman_gateway LOGIN PASSWORD :'gateway_password';
ALTER DATABASE keyman OWNER TO keyman_owner;
REVOKE ALL ON DATABASE keyman FROM PUBLIC;
GRANT CONNECT ON DATABASE keyman TO keyman_management, keyman_resolver, keyman_gateway;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
SQL

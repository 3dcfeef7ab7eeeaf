#!/bin/sh
# Runs once, on an empty disk: the owner of the schema and a login role for each service.
set -eu
psql -v ON_ERROR_STOP=1 -v owner="$OWNER_PASSWORD" -v chat="$CHAT_PASSWORD" -v notify="$NOTIFY_PASSWORD" \
     -v indexer="$INDEXER_PASSWORD" -d postgres <<'SQL'
CREATE ROLE fechatter_owner LOGIN CREATEROLE PASSWORD :'owner';
CREATE ROLE fechatter_chat NOLOGIN;
CREATE ROLE fechatter_notify NOLOGIN;
CREATE ROLE fechatter_indexer NOLOGIN;
CREATE ROLE fechatter_chat_login LOGIN IN ROLE fechatter_chat PASSWORD :'chat';
CREATE ROLE fechatter_notify_login LOGIN IN ROLE fechatter_notify PASSWORD :'notify';
CREATE ROLE fechatter_indexer_login LOGIN IN ROLE fechatter_indexer PASSWORD :'indexer';
CREATE DATABASE fechatter OWNER fechatter_owner;
SQL

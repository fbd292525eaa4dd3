#!/bin/sh
# Debian packages that some tests need: a browser for the report. Installs them where that is
# possible; elsewhere those tests say so and are skipped.
set -eu
command -v chromium >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing chromium for the browser tests"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium >/dev/null
else
    echo "no chromium, and this user cannot install it: the browser tests will be skipped"
fi

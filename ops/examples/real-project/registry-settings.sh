#!/bin/sh
# Writes this machine's registry settings into the folder $1: config.toml as cargo
# reads it, and `env`, which a shell can source. Tokens stay where they are.
set -eu
mkdir -p "$1"
home=${CARGO_HOME:-$HOME/.cargo}
for name in config config.toml; do
    if [ -f "$home/$name" ]; then cp "$home/$name" "$1/config.toml"; fi
done
names='CARGO_(REGISTRIES|REGISTRY|HTTP|NET|SOURCE)_[A-Z0-9_]*|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy|SSL_CERT_(FILE|DIR)'
env | grep -E "^($names)=" | grep -v -E '^[A-Z_]*(TOKEN|CREDENTIAL)' | LC_ALL=C sort |
    sed -e "s/'/'\\\\''/g" -e "s/^\([^=]*\)=\(.*\)\$/export \1='\2'/" > "$1/env"

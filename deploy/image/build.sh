#!/usr/bin/env bash
# Builds the image from a compiled binary, the same bytes from the same binary and distribution:
#
#   deploy/image/build.sh --binary target/release/e2llm [--tag e2llm:0.1.0] [--sbom e2llm.cdx.json]
#
# Needs buildah and the C library's tools (ldd, strip). With --sbom also cargo-cyclonedx, whose list of crates it writes.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=target/release/e2llm tag= sbom=
while [ $# -gt 0 ]; do
    case $1 in
        --binary) binary=$2 ;;
        --tag) tag=$2 ;;
        --sbom) sbom=$2 ;;
        *) echo "error: unknown flag $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift 2
done
[ -x "$binary" ] || { echo "error: $binary is not there: cargo build --release --locked, or --binary FILE" >&2; exit 1; }
version=$("$binary" --version | cut -d' ' -f2)
commit=$(git rev-parse HEAD) seconds=$(git log -1 --format=%ct)
tag=${tag:-e2llm:$version}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sh deploy/image/gather.sh "$binary" "$work/rootfs"
image=$(buildah from scratch)
tar --create --file "$work/rootfs.tar" --directory "$work/rootfs" --sort=name --mtime="@$seconds" --numeric-owner .
buildah add --quiet "$image" "$work/rootfs.tar" / >/dev/null
buildah config --user 65532:65532 --env HOME=/home/e2llm --env E2LLM_CACHE=/cache --port 7700 --port 7780 \
    --entrypoint '["/usr/local/bin/e2llm"]' --label org.opencontainers.image.version="$version" \
    --label org.opencontainers.image.revision="$commit" "$image"
buildah commit --quiet --rm --timestamp "$seconds" --format oci "$image" "$tag" >/dev/null
echo "$tag $(buildah inspect --type image --format '{{.FromImageDigest}}' "$tag")"
if [ -n "$sbom" ]; then
    # It writes one beside every manifest of the workspace.
    cargo cyclonedx --format json --target all --override-filename e2llm-sbom --manifest-path services/e2llm/Cargo.toml
    mv services/e2llm/e2llm-sbom.json "$work/sbom.json"
    find services shared tests -name e2llm-sbom.json -delete
    mv "$work/sbom.json" "$sbom"
fi

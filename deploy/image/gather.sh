#!/bin/sh
# Gathers what a binary needs at run time into a directory that becomes the image: gather.sh BINARY DIRECTORY
set -eu
binary=$1 root=$2
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/tmp" "$root/cache" "$root/data" "$root/home/e2llm"
strip -o "$root/usr/local/bin/e2llm" "$binary" 2>/dev/null || cp "$binary" "$root/usr/local/bin/e2llm"
chmod 755 "$root/usr/local/bin/e2llm"
# Shared libraries and the loader, under the paths by which they are found.
ldd "$binary" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf 'e2llm:x:65532:65532:e2llm:/home/e2llm:/nonexistent\n' > "$root/etc/passwd"
printf 'e2llm:x:65532:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
chown -R 65532:65532 "$root/cache" "$root/data" "$root/home/e2llm"
chmod 1777 "$root/tmp"

# Sourced: a root file system of busybox, small enough to be made for every use.

# make_rootfs DIRECTORY
make_rootfs() {
    for directory in bin proc dev sys tmp etc; do mkdir -p "$1/$directory"; done
    cp "$(command -v busybox)" "$1/bin/busybox"
    for applet in cat echo hostname ip ls ps seq sh sleep true; do
        ln -s busybox "$1/bin/$applet"
    done
}

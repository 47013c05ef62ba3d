SUMMARY = "First contents of the data partition of a Hyperion device"
DESCRIPTION = "A small ext4 file system with empty folders and no keys, which grows to its partition \
at the first boot."
HOMEPAGE = "https://hyperion.example"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

DEPENDS = "e2fsprogs-native"

SRC_URI = ""

S = "${UNPACKDIR}"

inherit deploy nopackages

INHIBIT_DEFAULT_DEPS = "1"

# Room for /etc, identity and store until it has grown.
HYPERION_DATA_SIZE ?= "64M"
HYPERION_DATA_FOLDERS ?= "hyperion hyperion-enrol hyperion-update containerd"

do_configure[noexec] = "1"
do_install[noexec] = "1"

do_compile[cleandirs] = "${B}"
do_compile() {
    for folder in ${HYPERION_DATA_FOLDERS}; do
        install -d -m 0755 ${B}/data/state/$folder
    done
    # The same bytes each time: fixed ids, and no time of this build.
    find ${B}/data -exec touch --date=@${SOURCE_DATE_EPOCH} {} +
    export E2FSPROGS_FAKE_TIME="${SOURCE_DATE_EPOCH}"
    mke2fs -q -t ext4 -L hyperion-data -U 6879d0a1-0000-4000-8000-000000000001 \
        -E hash_seed=6879d0a1-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=1 \
        -d ${B}/data ${B}/hyperion-data.ext4 ${HYPERION_DATA_SIZE}
}
do_compile[vardeps] += "HYPERION_DATA_FOLDERS HYPERION_DATA_SIZE"

do_deploy() {
    install -m 0644 ${B}/hyperion-data.ext4 ${DEPLOYDIR}/hyperion-data-${MACHINE}.ext4
}
addtask deploy after do_compile before do_build

PACKAGE_ARCH = "${MACHINE_ARCH}"

SUMMARY = "Signed update of a Hyperion device"
DESCRIPTION = "hyperion-image as a bundle that SWUpdate writes into the slot that is not running."
HOMEPAGE = "https://hyperion.example"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = " \
    file://choose-slot.sh \
    file://sw-description \
"

inherit swupdate

COMPATIBLE_MACHINE = "(tegra)"
# Needs hyperion-image, which is there only with meta-virtualization.
EXCLUDE_FROM_WORLD = "1"

HYPERION_BUNDLE_IMAGE ?= "hyperion-image"
IMAGE_DEPENDS = "${HYPERION_BUNDLE_IMAGE}"
HYPERION_BUNDLE_ROOT = "${HYPERION_BUNDLE_IMAGE}-${MACHINE}.rootfs.tar.gz"
SWUPDATE_IMAGES = "${HYPERION_BUNDLE_ROOT}"

# Paths on the machine that builds; there is no default key.
HYPERION_UPDATE_CERTIFICATE ??= ""
HYPERION_UPDATE_KEY ??= ""
SWUPDATE_SIGNING = "CMS"
SWUPDATE_CMS_CERT = "${HYPERION_UPDATE_CERTIFICATE}"
SWUPDATE_CMS_KEY = "${HYPERION_UPDATE_KEY}"

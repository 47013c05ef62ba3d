SUMMARY = "Signed update of a Hyperion device"
DESCRIPTION = "hyperion-image as a bundle that is written into the slot that is not running."
HOMEPAGE = "https://hyperion.example"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://sw-description"

inherit swupdate

COMPATIBLE_MACHINE = "(tegra)"
# Needs hyperion-image, which is there only with meta-virtualization.
EXCLUDE_FROM_WORLD = "1"

HYPERION_BUNDLE_IMAGE ?= "hyperion-image"
IMAGE_DEPENDS = "${HYPERION_BUNDLE_IMAGE}"
HYPERION_BUNDLE_ROOT = "${HYPERION_BUNDLE_IMAGE}-${MACHINE}.rootfs.ext4.zst"
# Of the image before it is packed: a slot that is too small is left as it is. Known once the image is
# made; its own hash is what the bundle depends on.
HYPERION_BUNDLE_FILE = "${DEPLOY_DIR_IMAGE}/${HYPERION_BUNDLE_IMAGE}-${MACHINE}.rootfs.ext4"
HYPERION_BUNDLE_SIZE = "${@os.path.getsize(d.getVar('HYPERION_BUNDLE_FILE')) if os.path.exists(d.getVar('HYPERION_BUNDLE_FILE')) else 0}"
HYPERION_BUNDLE_SIZE[vardepvalue] = ""
# Must be higher than, or that of, the devices that get it.
HYPERION_SYSTEM_VERSION ?= "${DISTRO_VERSION}"
SWUPDATE_IMAGES = "${HYPERION_BUNDLE_ROOT}"

# Paths on the machine that builds; there is no default key.
HYPERION_UPDATE_CERTIFICATE ??= ""
HYPERION_UPDATE_KEY ??= ""
SWUPDATE_SIGNING = "CMS"
SWUPDATE_CMS_CERT = "${HYPERION_UPDATE_CERTIFICATE}"
SWUPDATE_CMS_KEY = "${HYPERION_UPDATE_KEY}"

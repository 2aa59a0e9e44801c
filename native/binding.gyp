# SPDX-License-Identifier: GPL-2.0-only
# Builds build/Release/mxfs_native.node (the addon) and build/mxfsd-launch (the C launcher) with
# "node-gyp rebuild --directory native".
{
  "targets": [
    {
      "target_name": "mxfs_native",
      "sources": ["src/addon.cc", "src/genl.cc", "src/scsi.cc", "src/direct.cc", "src/host.cc"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=9", "NODE_ADDON_API_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED"],
      "cflags!": ["-Wno-unused-parameter"],
      "cflags_cc!": ["-fno-exceptions"],
      "cflags_cc": ["-std=c++17", "-Wall", "-Wextra", "-fexceptions", "-fvisibility=hidden"],
    },
    {
      "target_name": "mxfsd_launch",
      "type": "none",
      "actions": [
        {
          "action_name": "compile_launcher",
          "inputs": ["launch.c"],
          "outputs": ["build/mxfsd-launch"],
          "action": ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", "<@(_outputs)", "<@(_inputs)"],
        }
      ],
    },
  ]
}

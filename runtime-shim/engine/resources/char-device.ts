// Character devices without state, opened by path as any file. Masters of
// terminals, terminals of others and every other device are refused, unless the descriptor stays outside.
import { fd_types } from '../../../oci-spec/images/messages.js';
import type { FileRoom } from '../room.js';
import { descriptorPhrase, encodeOwner, fileType, kCharDeviceType, linkText } from './file-common.js';
import { isExternalFile, pathFileEntry, regularFileRoom } from './regular-file.js';

const kMemoryMajor = 1n;
/** null, zero, full, random, urandom: Documentation/admin-guide/devices.txt */
const stateless = new Set([3n, 5n, 7n, 8n, 9n]);

const kTtyMajors = new Set([4n, 5n, 136n, 137n, 138n, 139n, 140n, 141n, 142n, 143n]);

export const charDeviceRoom: FileRoom = {
  kind: 'char-device',
  fdType: fd_types.REG,
  claims: (file) => fileType(file) === kCharDeviceType,

  encode(file, fileId, ctx) {
    const rdev = file.stat?.rdev ?? 0n;
    const major = rdev >> 20n;
    const minor = rdev & 0xfffffn;
    const name = linkText(file);
    if (major === kMemoryMajor && stateless.has(minor)) {
      const entry = pathFileEntry(file, fileId, ctx);
      return entry === undefined ? undefined : { type: fd_types.REG, id: fileId, reg: entry };
    }
    if (!file.pathMatches && isExternalFile(name, ctx)) {
      const reg = {
        id: fileId,
        flags: file.statusFlags,
        pos: 0n,
        fown: encodeOwner(file, ctx),
        name,
        mnt_id: -1,
        ext: true,
        mode: file.stat?.mode,
        build_id: [],
      };
      return { type: fd_types.REG, id: fileId, reg };
    }
    const terminal = kTtyMajors.has(major);
    ctx.object(
      'CAPTURE_FD_UNSUPPORTED',
      `${descriptorPhrase(file, ctx)} is ${terminal ? 'a terminal' : 'a device'}, "${name}" (${major}:${minor}), whose state is not carried`,
      ctx.subjectOfFile(file),
      'let the process close it first',
    );
    return undefined;
  },

  compile: (entry, ctx) => regularFileRoom.compile(entry, ctx),
};

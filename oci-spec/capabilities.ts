// Capability names of OCI specs and their bits in the kernel's sets.

const names = [
  'CHOWN', 'DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID', 'KILL', 'SETGID', 'SETUID', 'SETPCAP', 'LINUX_IMMUTABLE',
  'NET_BIND_SERVICE', 'NET_BROADCAST', 'NET_ADMIN', 'NET_RAW', 'IPC_LOCK', 'IPC_OWNER', 'SYS_MODULE', 'SYS_RAWIO', 'SYS_CHROOT', 'SYS_PTRACE',
  'SYS_PACCT', 'SYS_ADMIN', 'SYS_BOOT', 'SYS_NICE', 'SYS_RESOURCE', 'SYS_TIME', 'SYS_TTY_CONFIG', 'MKNOD', 'LEASE', 'AUDIT_WRITE',
  'AUDIT_CONTROL', 'SETFCAP', 'MAC_OVERRIDE', 'MAC_ADMIN', 'SYSLOG', 'WAKE_ALARM', 'BLOCK_SUSPEND', 'AUDIT_READ', 'PERFMON', 'BPF',
  'CHECKPOINT_RESTORE',
]; // prettier-ignore

/** Names that this list does not know grant nothing. */
export function capabilityBits(granted: readonly string[]): bigint {
  let bits = 0n;
  for (const name of granted) {
    const index = names.indexOf(name.replace(/^CAP_/, ''));
    if (index >= 0) bits |= 1n << BigInt(index);
  }
  return bits;
}

export function capabilityNames(bits: bigint): string[] {
  const result: string[] = [];
  for (let index = 0; index < 64; index += 1) {
    if (((bits >> BigInt(index)) & 1n) === 1n)
      result.push(names[index] === undefined ? `capability ${index}` : `CAP_${names[index]}`);
  }
  return result;
}

// The scope of a container that is being restored. A scope lives while it has
// processes: until the restored tasks are there, a placeholder is in it. That
// ends when we are killed, at any instant, and systemd takes the scope away.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Placeholder } from '../../nativecore/index.js';
import { containerDeviceRules } from '../../oci-spec/devices.js';
import { FormatError } from '../../oci-spec/json.js';
import type { RuntimeConfig } from '../../oci-spec/runtime-config.js';
import type { UnitProperty } from '../../oci-spec/systemd-annotations.js';
import type { SystemdCgroup } from '../../oci-spec/systemd-cgroup.js';
import { StasisError, fileError, type ErrorCode } from '../errors/index.js';
import { cgroupDirectoryOf, withRoomForPlaceholder, type CgroupLayout } from './cgroups.js';
import { reduceDeviceRules } from './device-program.js';
import { pollUntil } from './poll.js';
import { readText } from './proc.js';
import { DbusError, SystemdBus } from './systemd-bus.js';
import { deviceProperties, resourceProperties } from './systemd-properties.js';

/** An ended scope is gone as soon as systemd has looked at its cgroup. */
const kGoneTimeoutMs = 3000;
const kErrors = 'org.freedesktop.systemd1.';

export interface ScopeRequest {
  /** "restore container "web"" */
  readonly goal: string;
  readonly cgroup: SystemdCgroup;
  readonly spec: RuntimeConfig;
  readonly layout: CgroupLayout;
  /** Where the scope is in the hierarchy that systemd keeps its processes in, by our reckoning. */
  readonly directory: string;
  /** Of the container, within the scope or the scope itself. */
  readonly innerDirectory: string;
}

export class SystemdScope {
  readonly #bus: SystemdBus;
  readonly #name: string;
  readonly #placeholder: Placeholder;
  /** Until then a unit of that name is somebody else's. */
  #isOurs = false;

  private constructor(bus: SystemdBus, name: string, placeholder: Placeholder) {
    this.#bus = bus;
    this.#name = name;
    this.#placeholder = placeholder;
  }

  /** Postcondition: on failure there is no scope that was not there before. */
  static async start(request: ScopeRequest): Promise<SystemdScope> {
    const refuse = refusalOf(request);
    let bus: SystemdBus;
    try {
      bus = await SystemdBus.open();
    } catch (error) {
      throw refuse.noSystemd(error as Error);
    }
    const placeholder = Placeholder.start();
    const scope = new SystemdScope(bus, request.cgroup.scope, placeholder);
    try {
      const result = await scope.#startUnit(request, refuse);
      if (result !== 'done') throw refuse.because(`systemd answers that starting it is ${JSON.stringify(result)}`);
      scope.#enter(request, refuse);
      return scope;
    } catch (error) {
      await scope.end();
      if (error instanceof StasisError) throw error;
      throw error instanceof FormatError ? refuse.asked(error) : refuse.because((error as Error).message, error);
    }
  }

  get placeholderHostPid(): number {
    return this.#placeholder.hostPid;
  }

  /** Returns what has become of it: "done". */
  async #startUnit(request: ScopeRequest, refuse: Refusal): Promise<string> {
    const properties = unitProperties(request, this.placeholderHostPid, await this.#bus.systemdVersion());
    let result: string | undefined;
    let state: string | undefined;
    const started = await pollUntil(async () => {
      this.#placeholder.asked();
      try {
        const arguments_ = [this.#name, 'fail', properties, []];
        const [job] = await this.#bus.callManager('StartTransientUnit', 'ssa(sv)a(sa(sv))', arguments_);
        this.#isOurs = true;
        result = await this.#bus.jobResult(String(job));
        return true;
      } catch (error) {
        if (!(error instanceof DbusError) || error.name !== `${kErrors}UnitExists`) throw error;
      } finally {
        this.#placeholder.answered();
      }
      state = await this.#activeState();
      if (state === 'failed' || state === 'inactive') await this.#resetFailed();
      // One that ends ("deactivating") will be gone in a moment.
      else if (state !== undefined && state !== 'deactivating') throw refuse.exists(state);
      return false;
    }, kGoneTimeoutMs);
    if (!started) throw refuse.exists(state ?? 'inactive');
    return result!;
  }

  /** The placeholder is where the tasks are going to be, and that is where we think it is. */
  #enter({ layout, directory, innerDirectory }: ScopeRequest, refuse: Refusal): void {
    const controller = layout.version === 2 ? '' : 'name=systemd';
    const found = cgroupDirectoryOf(layout, this.placeholderHostPid, controller);
    if (found !== directory)
      throw refuse.because(`systemd made its cgroup at ${found ?? 'a place that is not mounted'}`);
    if (innerDirectory === directory) return;
    try {
      // v2: a cgroup with processes passes no controllers on.
      mkdirSync(innerDirectory, { recursive: true });
      writeFileSync(join(innerDirectory, 'cgroup.procs'), String(this.placeholderHostPid));
    } catch (error) {
      throw fileError(`cannot create cgroup ${innerDirectory}`, innerDirectory, error);
    }
  }

  /** The tasks are in it; their number is limited to theirs. */
  async handOver(pidsLimit: number | undefined): Promise<void> {
    await this.#placeholder.end();
    if (pidsLimit === undefined || pidsLimit <= 0) return;
    const limit: UnitProperty = ['TasksMax', { signature: 't', value: BigInt(pidsLimit) }];
    await this.#bus.callManager('SetUnitProperties', 'sba(sv)', [this.#name, true, [limit]]);
  }

  /** Nothing of the tree is left: the scope goes. Never throws; what is left then is an empty scope. */
  async end(): Promise<void> {
    await this.#placeholder.end();
    try {
      if (!this.#isOurs || (await this.#isGone())) return;
      // v1 does not tell systemd of cgroups that have become empty unless it runs an agent.
      await this.#bus.callManager('StopUnit', 'ss', [this.#name, 'replace']);
      await this.#isGone();
    } catch {
      // NoSuchUnit: gone meanwhile. Else the connection is lost; the error that brought us here says more.
    } finally {
      this.#bus[Symbol.dispose]();
    }
  }

  /** What was made stays. */
  close(): void {
    this.#bus[Symbol.dispose]();
  }

  async #isGone(): Promise<boolean> {
    return await pollUntil(async () => {
      const state = await this.#activeState();
      if (state === 'failed') await this.#resetFailed();
      return state === undefined;
    }, kGoneTimeoutMs);
  }

  /** "active", "failed", ...; undefined: there is no such unit. */
  async #activeState(): Promise<string | undefined> {
    try {
      const [path] = await this.#bus.callManager('GetUnit', 's', [this.#name]);
      return String(await this.#bus.property(String(path), 'org.freedesktop.systemd1.Unit', 'ActiveState'));
    } catch (error) {
      if (!(error instanceof DbusError)) throw error;
      // UnknownObject: it has gone between the two calls.
      if (error.name === `${kErrors}NoSuchUnit` || error.name.endsWith('.UnknownObject')) return undefined;
      throw error;
    }
  }

  async #resetFailed(): Promise<void> {
    try {
      await this.#bus.callManager('ResetFailedUnit', 's', [this.#name]);
    } catch (error) {
      if (!(error instanceof DbusError)) throw error;
      // Gone, or not failed any more: the next look tells.
    }
  }
}

/** Later ones count. */
function unitProperties(
  { cgroup, spec, layout }: ScopeRequest,
  placeholderHostPid: number,
  systemdVersion: number,
): readonly UnitProperty[] {
  const text = (value: string): UnitProperty[1] => ({ signature: 's', value });
  const boolean = (value: boolean): UnitProperty[1] => ({ signature: 'b', value });
  const devices = reduceDeviceRules(containerDeviceRules(spec, true));
  return [
    ['Description', text(cgroup.description)],
    ['Slice', text(cgroup.slice)],
    ['Delegate', boolean(true)],
    ['PIDs', { signature: 'au', value: [placeholderHostPid] }],
    ['DefaultDependencies', boolean(false)],
    // Otherwise one whose container was killed for want of memory stays, as "failed", and its name is taken.
    ['CollectMode', text('inactive-or-failed')],
    ...resourceProperties({
      resources: withRoomForPlaceholder(spec.linux?.resources),
      cgroupVersion: layout.version,
      systemdVersion,
    }),
    ...deviceProperties(devices, readText('/proc/devices')),
    ...cgroup.properties,
  ];
}

interface Refusal {
  noSystemd(error: Error): StasisError;
  exists(state: string): StasisError;
  asked(error: FormatError): StasisError;
  because(reason: string, cause?: unknown): StasisError;
}

function refusalOf({ goal, cgroup }: ScopeRequest): Refusal {
  const refusal = (code: ErrorCode, reason: string, hint?: string, cause?: unknown): StasisError =>
    new StasisError({
      code,
      message: `cannot ${goal} in the scope ${cgroup.scope}: ${reason}`,
      ...(hint === undefined ? {} : { hint }),
      ...(cause === undefined ? {} : { cause }),
    });
  return {
    noSystemd: (error) =>
      refusal(
        'ENVIRONMENT',
        `only systemd can make it, and there is no way to systemd (${error.message})`,
        'start systemd or its bus, or use the cgroupfs driver (podman: --cgroup-manager=cgroupfs)',
        error,
      ),
    exists: (state) =>
      refusal(
        'CONTAINER_EXISTS',
        `there is one already, which is ${state}`,
        `end it (systemctl stop ${cgroup.scope}), or give the container another linux.cgroupsPath`,
      ),
    asked: (error) => refusal('BUNDLE_INVALID', error.message, 'repair config.json', error),
    because: (reason, cause) => refusal('ENVIRONMENT', reason, undefined, cause),
  };
}

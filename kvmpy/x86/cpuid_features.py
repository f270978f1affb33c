"""Names of CPUID feature bits, as Linux prints them in /proc/cpuinfo where it does.

SDM vol. 2A "CPUID", APM vol. 3 appendix E, and for leaf 0x40000001 the KVM document on CPUID. A table row
is one register: names of bits 0 to 31, ``-`` for a bit without one, ``-N`` for N of them; bits behind the
last name have none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Place = tuple[int, int, str, int]

_ROWS: tuple[tuple[int, int, str, str], ...] = (
    (0x1, 0, "edx", """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx
        fxsr
        sse sse2 ss ht tm ia64 pbe"""),
    (0x1, 0, "ecx", """
        pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca
        sse4_1
        sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"""),
    (0x6, 0, "eax", "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req"),
    (0x6, 0, "ecx", "aperfmperf -2 epb"),
    (0x7, 0, "ebx", """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx
        rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er
        avx512cd sha_ni avx512bw avx512vl"""),
    (0x7, 0, "ecx", """
        prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni
        avx512_bitalg tme avx512_vpopcntdq - la57 -5 rdpid kl bus_lock_detect cldemote - movdiri movdir64b
        enqcmd
        sgx_lc pks"""),
    (0x7, 0, "edx", """
        - sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr -2 avx512_vp2intersect srbds_ctrl md_clear
        rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16
        avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities
        spec_ctrl_ssbd"""),
    (0x7, 1, "eax", """
        sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc -4 fred
        lkgs
        wrmsrns nmi_src amx_fp16 hreset avx_ifma -2 lam msrlist -3 movrs"""),
    (0x7, 1, "edx", """
        -4 avx_vnni_int8 avx_ne_convert -2 amx_complex - avx_vnni_int16 -3 prefetchiti user_msr -2 cet_sss
        avx10 -
        apx_f"""),
    (0x7, 2, "edx", "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    (0xD, 1, "eax", "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (0x40000001, 0, "eax", """
        kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi
        kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control
        kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control
        -6
        kvm_clocksource_stable"""),
    (0x40000001, 0, "edx", "kvm_hint_realtime"),
    (0x80000001, 0, "edx", "-11 syscall -7 mp nx - mmxext -2 fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    (0x80000001, 0, "ecx", """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit
        wdt -
        lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"""),
    (0x80000007, 0, "ebx", "overflow_recov succor - smca"),
    (0x80000007, 0, "edx", "-7 hw_pstate invtsc cpb eff_freq_ro - acc_power"),
    (0x80000008, 0, "ebx", """
        clzero irperf xsaveerptr invlpgb rdpru -3 mcommit wbnoinvd -2 amd_ibpb - amd_ibrs amd_stibp
        ibrs_always_on stibp_always_on - ibrs_same_mode efer_lmsle_no - - amd_ppin amd_ssbd virt_ssbd
        amd_ssb_no
        cppc amd_psfd btc_no ibpb_ret brs"""),
    (0x8000000A, 0, "edx", """
        npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists -2 pausefilter -
        pfthreshold
        avic - v_vmsave_vmload vgif gmet x2avic sss_check v_spec_ctrl -2 h_mce_override tlbi_ctl vnmi
        ibs_virt"""),
    (0x8000001F, 0, "eax", "sme sev vm_page_flush sev_es sev_snp vmpl"),
    (0x80000021, 0, "eax", """
        no_nested_data_bp - lfence_rdtsc smm_pgcfg_lock - verw_clear null_sel_clr_base - autoibrs
        no_smm_ctl_msr
        amd_fsrs amd_fsrc -8 prefetchi -6 sbpb ibpb_brtype srso_no"""),
)  # fmt: skip

_ALIASES = {
    "sse3": "pni",
    "hle_tsx": "hle",
    "tsc_deadline": "tsc_deadline_timer",
    "cx16b": "cx16",
    "cmpxchg16b": "cx16",
    "cmpxchg8b": "cx8",
    "long_mode": "lm",
    "1gb_pages": "pdpe1gb",
    "gbpages": "pdpe1gb",
    "lzcnt": "abm",
    "sha": "sha_ni",
    "xd": "nx",
    "nonstop_tsc": "invtsc",
    "pclmul": "pclmulqdq",
    "ibpb": "amd_ibpb",
    "cet_ss": "shstk",
    "cet_ibt": "ibt",
    "kvmclock": "kvm_clocksource2",
}

DEPENDS: dict[str, str] = {
    "sse": "fxsr",
    "sse2": "sse",
    "pni": "sse2",
    "ssse3": "pni",
    "sse4_1": "ssse3",
    "sse4_2": "sse4_1",
    "sse4a": "pni",
    "aes": "sse2",
    "pclmulqdq": "sse2",
    "sha_ni": "sse2",
    "gfni": "sse2",
    "osxsave": "xsave",
    "xsaveopt": "xsave",
    "xsavec": "xsave",
    "xgetbv1": "xsavec",
    "xsaves": "xsavec",
    "xfd": "xsaves",
    "avx": "xsave",
    "pku": "xsave",
    "ospke": "pku",
    "mpx": "xsave",
    "amx_tile": "xfd",
    "amx_int8": "amx_tile",
    "amx_bf16": "amx_tile",
    "amx_fp16": "amx_tile",
    "amx_complex": "amx_tile",
    "f16c": "avx",
    "fma": "avx",
    "fma4": "avx",
    "xop": "avx",
    "vaes": "avx",
    "vpclmulqdq": "avx",
    "avx2": "avx",
    "avx_vnni": "avx2",
    "avx_ifma": "avx2",
    "avx_vnni_int8": "avx2",
    "avx_vnni_int16": "avx2",
    "avx_ne_convert": "avx2",
    "sha512": "avx2",
    "sm3": "avx",
    "sm4": "avx2",
    "avx512f": "avx2",
    "avx512dq": "avx512f",
    "avx512ifma": "avx512f",
    "avx512pf": "avx512f",
    "avx512er": "avx512f",
    "avx512cd": "avx512f",
    "avx512bw": "avx512f",
    "avx512vl": "avx512f",
    "avx512vbmi": "avx512bw",
    "avx512_vbmi2": "avx512bw",
    "avx512_bitalg": "avx512bw",
    "avx512_fp16": "avx512bw",
    "avx512_bf16": "avx512bw",
    "avx512_vnni": "avx512f",
    "avx512_vpopcntdq": "avx512f",
    "avx512_4vnniw": "avx512f",
    "avx512_4fmaps": "avx512f",
    "avx512_vp2intersect": "avx512f",
    "avx10": "avx512f",
    "apx_f": "xsave",
    "x2apic": "apic",
    "tsc_deadline_timer": "apic",
    "mmxext": "mmx",
    "3dnow": "mmx",
    "3dnowext": "3dnow",
    "syscall": "lm",
    "pdpe1gb": "lm",
    "lahf_lm": "lm",
    "cx16": "lm",
    "la57": "lm",
    "pcid": "lm",
    "invpcid": "pcid",
    "lm": "pae",
    "nx": "pae",
    "rdtscp": "tsc",
    "tsc_adjust": "tsc",
    "invtsc": "tsc",
    "npt": "svm",
    "smx": "vmx",
    "rtm": "xsave",
}
"""A feature that makes no sense without another: hiding the second hides the first."""


def _parse() -> Iterator[tuple[str, Place]]:
    for leaf, subleaf, register, names in _ROWS:
        position = 0
        for word in names.split():
            if word.startswith("-"):
                position += int(word[1:] or 1)
                continue
            yield word, (leaf, subleaf, register, position)
            position += 1


FEATURES: dict[str, Place] = dict(_parse())
"""Name to (leaf, subleaf, register, bit)."""

# AMD repeats leaf 1 EDX in leaf 0x80000001 EDX: a bit hidden in one must be hidden in the other
_REPEATED = (
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "mtrr", "pge", "mca", "cmov", "pat",
    "pse36", "mmx", "fxsr",
)  # fmt: skip


def resolve(name: str) -> str:
    """The canonical spelling; case, ``-``, ``.`` don't matter, aliases are known. KeyError if it isn't."""
    plain = name.strip().lower().replace("-", "_").replace(".", "_").replace(" ", "_")
    plain = _ALIASES.get(plain, plain)
    if plain not in FEATURES:
        raise KeyError(name)
    return plain


def places(name: str) -> list[Place]:
    """Every (leaf, subleaf, register, bit) that says whether this feature is there; the first one counts."""
    plain = resolve(name)
    leaf, subleaf, register, bit = FEATURES[plain]
    if plain in _REPEATED:
        return [(leaf, subleaf, register, bit), (0x80000001, 0, "edx", bit)]
    return [(leaf, subleaf, register, bit)]


def dependents(name: str) -> list[str]:
    """Every feature that needs this one, directly or not."""
    found = [resolve(name)]
    for base in found:
        found += [other for other, needs in DEPENDS.items() if needs == base and other not in found]
    return found[1:]

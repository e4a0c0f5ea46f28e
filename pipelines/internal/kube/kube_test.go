package kube

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write golden files")

func service() Workload {
	return Workload{
		Name:     "shop",
		Image:    "registry.example/team/shop@sha256:" + strings.Repeat("1a", 32),
		UID:      65532,
		GID:      65532,
		Ports:    []Port{{8080, "TCP"}, {9090, "TCP"}},
		Service:  true,
		Probe:    &HTTPProbe{Path: "/healthz", Port: 8080},
		Ready:    12 * time.Millisecond,
		Memory:   14 * mib,
		Stop:     10 * time.Second,
		Writable: []string{"/tmp"},
	}
}

func change(f func(w *Workload)) Workload {
	w := service()
	f(&w)
	return w
}

// known are workloads with a golden file each.
var known = map[string]Workload{
	"service": service(),
	"job": change(func(w *Workload) {
		w.Service, w.Name, w.Probe, w.Ready = false, "Nightly.Report", nil, 0
	}),
	// All that a careful image avoids.
	"careless": change(func(w *Workload) {
		w.Name, w.UID, w.GID = "7 Dwarfs", 0, 0
		w.Ports, w.Probe = []Port{{80, "TCP"}, {443, "TCP"}}, nil
		w.Ready, w.Stop = 4321*time.Millisecond, 1500*time.Millisecond
		w.Writable = []string{"/tmp", "/var/lib/dwarfs/", "/var/lib-dwarfs"}
	}),
	"capabilities": change(func(w *Workload) {
		w.Ports, w.Capabilities = []Port{{443, "TCP"}}, []string{"cap_net_raw", "cap_net_bind_service"}
		w.Probe = &HTTPProbe{Path: "/healthz?deep=no: #1", Port: 443}
	}),
	// Nothing is known of it, not even its user's number.
	"unknown": {Name: "on", Image: "IMAGE", UID: -1, GID: -1, Service: true},
	"udp":     change(func(w *Workload) { w.Ports, w.Probe = []Port{{53, "UDP"}}, nil }),
}

func TestGolden(t *testing.T) {
	for name, w := range known {
		t.Run(name, func(t *testing.T) {
			text, err := Manifest(w)
			require.NoError(t, err)
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				require.NoError(t, os.WriteFile(golden, text, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), string(text))
			requireValid(t, w, text)
		})
	}
}

// objects are what a manifest holds.
type objects struct {
	*appsv1.Deployment
	*batchv1.Job
	*corev1.Service
}

// read decodes a manifest into the types of Kubernetes, and fails on every field that they do not have.
func read(t testing.TB, text []byte) (o objects) {
	t.Helper()
	for _, part := range bytes.Split(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(part, &kind), "%s", part)
		var into any
		switch kind.APIVersion + " " + kind.Kind {
		case "apps/v1 Deployment":
			require.Nil(t, o.Deployment)
			o.Deployment = new(appsv1.Deployment)
			into = o.Deployment
		case "batch/v1 Job":
			require.Nil(t, o.Job)
			o.Job = new(batchv1.Job)
			into = o.Job
		case "v1 Service":
			require.Nil(t, o.Service)
			o.Service = new(corev1.Service)
			into = o.Service
		default:
			t.Fatalf("what is %+v?", kind)
		}
		require.NoError(t, yaml.UnmarshalStrict(part, into, yaml.DisallowUnknownFields), "%s", part)
	}
	return o
}

// requireValid checks what holds for every manifest, much of it as the API server would.
func requireValid(t testing.TB, w Workload, text []byte) {
	t.Helper()
	o := read(t, text)
	var meta metav1.ObjectMeta
	var pod corev1.PodTemplateSpec
	if w.Service {
		require.Nil(t, o.Job)
		meta, pod = o.Deployment.ObjectMeta, o.Deployment.Spec.Template
		require.Equal(t, pod.Labels, o.Deployment.Spec.Selector.MatchLabels)
	} else {
		require.Nil(t, o.Deployment)
		require.Nil(t, o.Service)
		meta, pod = o.Job.ObjectMeta, o.Job.Spec.Template
		require.Equal(t, corev1.RestartPolicyNever, pod.Spec.RestartPolicy)
	}
	require.Empty(t, validation.IsDNS1123Label(meta.Name))
	require.Empty(t, validation.IsDNS1035Label(meta.Name), "Services have stricter names")
	require.Equal(t, map[string]string{"app.kubernetes.io/name": meta.Name}, meta.Labels)
	require.Empty(t, validation.IsValidLabelValue(meta.Name))
	require.Equal(t, meta.Labels, pod.Labels)

	spec := pod.Spec
	require.False(t, *spec.AutomountServiceAccountToken)
	require.False(t, *spec.EnableServiceLinks)
	require.Equal(t, w.UID != 0, *spec.SecurityContext.RunAsNonRoot)
	if w.UID < 0 {
		require.Nil(t, spec.SecurityContext.RunAsUser)
	} else {
		require.Equal(t, w.UID, *spec.SecurityContext.RunAsUser)
	}
	if w.GID < 0 {
		require.Nil(t, spec.SecurityContext.RunAsGroup)
	} else {
		require.Equal(t, w.GID, *spec.SecurityContext.RunAsGroup)
	}
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type)
	if w.Stop > 0 {
		grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second
		require.True(t, grace >= w.Stop && grace < w.Stop+time.Second)
	} else {
		require.Nil(t, spec.TerminationGracePeriodSeconds)
	}

	require.Len(t, spec.Containers, 1)
	c := spec.Containers[0]
	require.Empty(t, validation.IsDNS1123Label(c.Name))
	require.Equal(t, w.Image, c.Image)
	require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
	require.Equal(t, len(w.Capabilities) > 0, *c.SecurityContext.AllowPrivilegeEscalation)
	require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
	for _, add := range c.SecurityContext.Capabilities.Add {
		require.Regexp(t, `^[A-Z][A-Z0-9_]*$`, string(add))
		require.False(t, strings.HasPrefix(string(add), "CAP_"))
	}

	require.Equal(t, "100m", c.Resources.Requests.Cpu().String())
	require.True(t, c.Resources.Limits.Cpu().IsZero())
	limit := c.Resources.Limits.Memory().Value()
	require.Equal(t, limit, c.Resources.Requests.Memory().Value())
	if w.Memory > 0 {
		require.GreaterOrEqual(t, limit, max(32*mib, 2*w.Memory))
		require.Less(t, limit, max(32*mib, 2*w.Memory)+16*mib)
		require.Equal(t, "GOMEMLIMIT", c.Env[0].Name)
		require.Regexp(t, `^[0-9]+MiB$`, c.Env[0].Value)
	} else {
		require.Zero(t, limit)
		require.Empty(t, c.Env)
	}

	names := map[string]bool{}
	tcp := false
	for _, p := range c.Ports {
		require.Empty(t, validation.IsValidPortName(p.Name))
		require.Empty(t, validation.IsValidPortNum(int(p.ContainerPort)))
		require.False(t, names[p.Name], p.Name)
		names[p.Name] = true
		tcp = tcp || p.Protocol == corev1.ProtocolTCP
	}
	require.Equal(t, w.Service && len(c.Ports) > 0, o.Service != nil)
	if o.Service != nil {
		require.Equal(t, meta.Name, o.Service.Name)
		require.Equal(t, pod.Labels, o.Service.Spec.Selector)
		require.Len(t, o.Service.Spec.Ports, len(c.Ports))
		for i, p := range o.Service.Spec.Ports {
			require.Equal(t, c.Ports[i].Name, p.TargetPort.StrVal)
			require.Equal(t, c.Ports[i].ContainerPort, p.Port)
			require.Equal(t, c.Ports[i].Protocol, p.Protocol)
		}
	}

	probes := []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe}
	for _, p := range probes {
		switch {
		case !w.Service || w.Probe == nil && !tcp:
			require.Nil(t, p)
		case w.Probe != nil:
			require.Nil(t, p.TCPSocket)
			require.Equal(t, w.Probe.Path, p.HTTPGet.Path)
			require.Equal(t, w.Probe.Port, p.HTTPGet.Port.IntValue())
		default:
			require.Nil(t, p.HTTPGet)
			require.Empty(t, validation.IsValidPortNum(p.TCPSocket.Port.IntValue()))
		}
	}
	if s := c.StartupProbe; s != nil {
		allowed := time.Duration(s.FailureThreshold) * time.Duration(s.PeriodSeconds) * time.Second
		require.GreaterOrEqual(t, allowed, max(5*time.Second, 10*w.Ready))
	}

	require.Len(t, c.VolumeMounts, len(spec.Volumes))
	volumes := map[string]bool{}
	for i, v := range spec.Volumes {
		require.Empty(t, validation.IsDNS1123Label(v.Name))
		require.False(t, volumes[v.Name], v.Name)
		volumes[v.Name] = true
		require.Equal(t, v.Name, c.VolumeMounts[i].Name)
		require.Empty(t, v.EmptyDir.Medium)
		require.False(t, v.EmptyDir.SizeLimit.IsZero())
	}
	for line := range strings.Lines(string(text)) {
		require.LessOrEqual(t, len(strings.TrimSpace(regexp.MustCompile(`^ *[^ #].*`).ReplaceAllString(line, ""))), 120, line)
	}
}

func TestValues(t *testing.T) {
	decode := func(f func(w *Workload)) (objects, corev1.Container) {
		text, err := Manifest(change(f))
		require.NoError(t, err)
		o := read(t, text)
		return o, o.Deployment.Spec.Template.Spec.Containers[0]
	}
	for name, want := range map[string]string{
		"shop": "shop", "Shop.Server": "shop-server", "shop_v2.exe": "shop-v2-exe", "--shop--": "shop", "7z": "app-7z",
		"": "app", "日本語": "app", "true": "true", "on": "on", "null": "null", "a\n---\nkind: Secret": "a-kind-secret",
		strings.Repeat("a", 62) + ".b": strings.Repeat("a", 62), strings.Repeat("9", 80): "app-" + strings.Repeat("9", 59),
	} {
		o, _ := decode(func(w *Workload) { w.Name = name })
		require.Equal(t, want, o.Deployment.Name, "%q", name)
	}
	for memory, want := range map[int64]string{1: "32Mi", 16 * mib: "32Mi", 16*mib + 1: "48Mi", 1000 * mib: "2000Mi"} {
		_, c := decode(func(w *Workload) { w.Memory = memory })
		require.Equal(t, want, c.Resources.Limits.Memory().String())
	}
	_, c := decode(func(w *Workload) { w.Memory = 14 * mib })
	require.Equal(t, "28MiB", c.Env[0].Value)
	for ready, want := range map[time.Duration]int32{0: 30, 1: 5, 500 * time.Millisecond: 5, 501 * time.Millisecond: 6, time.Minute: 600} {
		_, c := decode(func(w *Workload) { w.Ready = ready })
		require.Equal(t, want, c.StartupProbe.FailureThreshold, ready)
	}

	o, c := decode(func(w *Workload) {
		w.Capabilities = []string{"CAP_NET_RAW", "cap_net_bind_service", "cap_net_raw"}
		w.Ports = []Port{{80, "TCP"}}
	})
	require.Equal(t, []corev1.Capability{"NET_BIND_SERVICE", "NET_RAW"}, c.SecurityContext.Capabilities.Add)
	require.Empty(t, o.Deployment.Spec.Template.Spec.SecurityContext.Sysctls, "the capability does it")
	o, c = decode(func(w *Workload) {
		w.Probe, w.Ports = nil, []Port{{53, "UDP"}, {53, "TCP"}, {25, "SCTP"}, {53, "TCP"}}
	})
	require.Equal(t, "25", o.Deployment.Spec.Template.Spec.SecurityContext.Sysctls[0].Value)
	require.Len(t, c.Ports, 3)
	require.Equal(t, 53, c.ReadinessProbe.TCPSocket.Port.IntValue())
	require.Len(t, o.Service.Spec.Ports, 3)

	_, c = decode(func(w *Workload) {
		w.Writable = []string{"/tmp", "/tmp/", "/a_b-2", "/a.b", "/a-b", "/a_b", "/" + strings.Repeat("x", 99)}
	})
	require.Equal(t, "/tmp", c.VolumeMounts[0].MountPath)
	var names []string
	for _, m := range c.VolumeMounts {
		names = append(names, m.Name)
	}
	require.Equal(t, []string{"tmp", "a-b-2", "a-b", "a-b-3", "a-b-4", strings.Repeat("x", 63)}, names)
}

func TestErrors(t *testing.T) {
	for want, f := range map[string]func(w *Workload){
		`"" is not a reference of an image`:                   func(w *Workload) { w.Image = "" },
		`"a b" is not a reference of an image`:                func(w *Workload) { w.Image = "a b" },
		`"a\nb" is not a reference of an image`:               func(w *Workload) { w.Image = "a\nb" },
		`-2 is not the number of a user or group`:             func(w *Workload) { w.UID = -2 },
		`4294967295 is not the number of a user or group`:     func(w *Workload) { w.GID = 1<<32 - 1 },
		`0/TCP is not a port`:                                 func(w *Workload) { w.Ports = []Port{{0, "TCP"}} },
		`80/tcp is not a port`:                                func(w *Workload) { w.Ports = []Port{{80, "tcp"}} },
		`"cap_net_raw+ep" is not a capability`:                func(w *Workload) { w.Capabilities = []string{"cap_net_raw+ep"} },
		`"healthz" on port 80 is not an HTTP probe`:           func(w *Workload) { w.Probe = &HTTPProbe{"healthz", 80} },
		`"/" on port 65536 is not an HTTP probe`:              func(w *Workload) { w.Probe = &HTTPProbe{"/", 65536} },
		`"tmp" is not a directory that can be mounted`:        func(w *Workload) { w.Writable = []string{"tmp"} },
		`"/.." is not a directory that can be mounted`:        func(w *Workload) { w.Writable = []string{"/.."} },
		`"/a:b" is not a directory that can be mounted`:       func(w *Workload) { w.Writable = []string{"/a:b"} },
		`"/a\u2028b" is not a directory that can be mounted`:  func(w *Workload) { w.Writable = []string{"/a\u2028b"} },
		`"/\xff" on port 8080 is not an HTTP probe`:           func(w *Workload) { w.Probe.Path = "/\xff" },
		`"/\u202e" on port 8080 is not an HTTP probe`:         func(w *Workload) { w.Probe.Path = "/\u202e" },
		`"/a: b\n- c" is not a directory that can be mounted`: func(w *Workload) { w.Writable = []string{"/a: b\n- c"} },
	} {
		text, err := Manifest(change(f))
		require.EqualError(t, err, want)
		require.Nil(t, text)
	}
}

// Whatever comes from outside is refused, or comes back as it was and changes nothing else.
func FuzzManifest(f *testing.F) {
	f.Add("shop", "registry.example/shop:v1", "/healthz", "/tmp", "cap_chown", int64(14*mib), int64(time.Second), uint16(80), true)
	f.Add("a\n# b", "&a", "/: #", "/'\"", "y", int64(-1), int64(-1), uint16(0), false)
	f.Add("*", "!!int 1", "/{{.}}", "/%", "0", int64(1<<62), int64(1<<62), uint16(65535), true)
	f.Fuzz(func(t *testing.T, name, image, path, dir, capability string, memory, d int64, port uint16, service bool) {
		memory, d = memory%(1<<50), d%int64(time.Hour)
		w := Workload{
			Name: name, Image: image, UID: memory % 3, GID: -1, Ports: []Port{{int(port), "TCP"}}, Capabilities: []string{capability},
			Service: service, Probe: &HTTPProbe{path, int(port)}, Ready: time.Duration(d), Memory: memory, Stop: time.Duration(d), Writable: []string{dir},
		}
		text, err := Manifest(w)
		if err == nil {
			requireValid(t, w, text)
		}
	})
}

package pipelines

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/internal/kube"
)

// Kube returns a Kubernetes manifest (YAML) that fits the image: security context, probes and resources come from
// the image's configuration and from what its smoke run saw. It is empty when that has failed. The manifest is
// written as kube.yaml, too.
func (p *Pipeline) Kube(ctx context.Context) ([]byte, error) {
	smoke, err := p.Smoke(ctx)
	if err != nil || smoke.Verdict == Failed || p.image == nil {
		return nil, err
	}
	m := p.image.Platforms[0]
	run := SmokeRun{Platform: m.Platform, Service: len(m.run.ExposedPorts) > 0}
	for _, r := range smoke.Runs {
		if r.Verdict == Passed {
			run = r // of several, any: they are of the same program
			break
		}
	}
	w := kube.Workload{
		Name: p.Plan.Name, Image: p.kubeImage(), Capabilities: p.Config.Capabilities, Service: run.Service,
		Ready: time.Duration(median(run.Starts)), Memory: run.MaxMemory, Stop: p.Config.Smoke.Stop,
	}
	w.UID, w.GID = p.numericUser(m.run.User)
	for _, port := range sortedKeys(m.run.ExposedPorts) {
		number, protocol, _ := strings.Cut(port, "/")
		if n, err := strconv.Atoi(number); err == nil {
			w.Ports = append(w.Ports, kube.Port{Number: n, Protocol: strings.ToUpper(cmp.Or(protocol, "tcp"))})
		}
	}
	if len(w.Ports) == 0 {
		for _, n := range run.Ports {
			w.Ports = append(w.Ports, kube.Port{Number: n, Protocol: "TCP"})
		}
	}
	slices.SortFunc(w.Ports, func(a, b kube.Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	for _, probe := range p.Config.Smoke.Probes {
		if probe.HTTP == "" || probe.Status >= http.StatusBadRequest {
			continue
		}
		port := probe.Port
		for _, x := range w.Ports {
			if port == 0 && x.Protocol == "TCP" {
				port = x.Number
			}
		}
		if port > 0 {
			w.Probe = &kube.HTTPProbe{Path: probe.HTTP, Port: port}
			break
		}
	}
	if *p.Config.Tmp || m.Layers[0].Kind == "base" {
		w.Writable = append(w.Writable, "/tmp")
	}
	for _, volume := range sortedKeys(m.run.Volumes) {
		if !slices.Contains(w.Writable, volume) {
			w.Writable = append(w.Writable, volume)
		}
	}
	text, err := kube.Manifest(w)
	if err != nil {
		return nil, err
	}
	return text, p.writeFile("kube.yaml", text)
}

// kubeImage is the image by digest, where publish would push it.
func (p *Pipeline) kubeImage() string {
	repo := "registry.example/" + p.Plan.Name
	for _, to := range p.Config.To {
		if to == "embedded" || strings.HasPrefix(to, "oci:") || strings.HasPrefix(to, "tar:") {
			continue
		}
		repo = to
		// The tag follows the last colon, unless that is before a port.
		if i := strings.LastIndexByte(to, ':'); i > strings.LastIndexByte(to, '/') {
			repo = to[:i]
		}
		break
	}
	return repo + "@" + p.image.Digest
}

// numericUser are user and group of an image as numbers, -1 where it names them and only its base image knows
// which they are.
func (p *Pipeline) numericUser(user string) (uid, gid int64) {
	name, group, found := strings.Cut(user, ":")
	number := func(s string) int64 {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
		switch {
		case s == "" || s == "root":
			return 0
		case s == "nonroot" && *p.Config.Accounts:
			return 65532
		}
		return -1
	}
	uid = number(name)
	gid = uid
	if found {
		gid = number(group)
	} else if uid != 0 && uid != 65532 {
		gid = -1 // what the base image's /etc/passwd says
	}
	return uid, gid
}

package podworker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// ensureImage returns the container's image, after pulling it if its policy says so. Without it, it returns why the
// container waits, and when to try again.
func (w *worker) ensureImage(ctx context.Context, p *corev1.Pod, c *corev1.Container, o observed) (*runtimeapi.Image, time.Duration, waiting) {
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", c.Image, c.Image, err)
		if w.waiting[c.Name].reason != "InvalidImageName" {
			w.k.Recorder.Event(p, corev1.EventTypeWarning, "InspectFailed", message)
		}
		return nil, backoffMin, waiting{"InvalidImageName", message}
	}
	spec := &runtimeapi.ImageSpec{Image: c.Image, UserSpecifiedImage: c.Image}
	have, err := w.imageStatus(ctx, spec)
	if err != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "InspectFailed", "Failed to inspect image %q: %v", c.Image, err)
		return nil, backoffMin, waiting{"ImageInspectError", fmt.Sprintf("Failed to inspect image %q: %v", c.Image, err)}
	}
	if have != nil && c.ImagePullPolicy != corev1.PullAlways {
		if w.waiting[c.Name].reason == "" {
			w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.Image)
		}
		return have, 0, waiting{}
	}
	if c.ImagePullPolicy == corev1.PullNever {
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		w.k.Recorder.Event(p, corev1.EventTypeWarning, "ErrImageNeverPull", message)
		return nil, backoffMin, waiting{"ErrImageNeverPull", message}
	}
	pause := w.pulls[c.Image]
	if pause == nil {
		pause = &pullBackoff{}
		w.pulls[c.Image] = pause
	}
	if left := time.Until(pause.until); left > 0 {
		w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "BackOff", "Back-off pulling image %q", c.Image)
		return nil, left, waiting{"ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %v", c.Image, pause.err)}
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulling", "Pulling image %q", c.Image)
	if _, err := w.writeStatus(ctx, p, o, false); err != nil { // a pull may take long
		klog.V(2).InfoS("Status was not written before a pull", "pod", klog.KObj(p), "err", err)
	}
	began := time.Now()
	err = w.pull(ctx, p, spec)
	if err == nil {
		have, err = w.imageStatus(ctx, spec)
		if err == nil && have == nil {
			err = errors.New("the image is not there after it was pulled")
		}
	}
	if err != nil {
		pause.failed(err, time.Now())
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", c.Image, err)
		w.k.Recorder.Event(p, corev1.EventTypeWarning, "Failed", "Error: ErrImagePull")
		return nil, showBackoff, waiting{"ErrImagePull", err.Error()}
	}
	delete(w.pulls, c.Image)
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s", c.Image, time.Since(began).Round(time.Millisecond))
	return have, 0, waiting{}
}

// showBackoff is how long the error of a pull is shown, before the pause that follows it is.
const showBackoff = 2 * time.Second

func (w *worker) pull(ctx context.Context, p *corev1.Pod, spec *runtimeapi.ImageSpec) (err error) {
	for _, auth := range w.pullAuth(ctx, p, spec.Image) {
		if _, err = w.k.Images.PullImage(ctx, spec, auth, nil); err == nil {
			return nil
		}
	}
	return err
}

func (w *worker) imageStatus(ctx context.Context, spec *runtimeapi.ImageSpec) (*runtimeapi.Image, error) {
	resp, err := w.k.Images.ImageStatus(ctx, spec, false)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	return resp.Image, nil
}

// pullAuth lists the credentials to try: those of the pod's imagePullSecrets that name the image's registry, then none.
func (w *worker) pullAuth(ctx context.Context, p *corev1.Pod, image string) []*runtimeapi.AuthConfig {
	var out []*runtimeapi.AuthConfig
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := w.k.Objects.Secret(ctx, p.UID, p.Namespace, ref.Name)
		if err != nil {
			continue // a missing secret is no reason not to try without it
		}
		out = append(out, credentials(s, image)...)
	}
	return append(out, nil)
}

// registryAuth is an entry of a docker configuration.
type registryAuth struct{ Username, Password, Auth, IdentityToken string }

// credentials reads what a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg holds for the
// image's registry, the longest matching path first.
func credentials(s *corev1.Secret, image string) []*runtimeapi.AuthConfig {
	var auths map[string]registryAuth
	if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
		var cfg struct{ Auths map[string]registryAuth }
		if json.Unmarshal(data, &cfg) != nil {
			return nil
		}
		auths = cfg.Auths
	} else if json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths) != nil {
		return nil
	}
	name, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil
	}
	var servers []string
	for server := range auths {
		if names(server, name) {
			servers = append(servers, server)
		}
	}
	slices.SortFunc(servers, func(a, b string) int {
		if d := len(b) - len(a); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	var out []*runtimeapi.AuthConfig
	for _, server := range servers {
		a := auths[server]
		user, password := a.Username, a.Password
		if a.Auth != "" && user == "" {
			if data, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
				user, password, _ = strings.Cut(string(data), ":")
			}
		}
		out = append(out, &runtimeapi.AuthConfig{Username: user, Password: password, IdentityToken: a.IdentityToken, ServerAddress: server})
	}
	return out
}

// names tells whether the entry of a docker configuration for server is meant for an image: the host is the same
// (parts may be *) and the path, if there is one, a prefix. Docker Hub's entry is https://index.docker.io/v1/.
func names(server string, image reference.Named) bool {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, prefix, _ := strings.Cut(strings.TrimSuffix(server, "/"), "/")
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if prefix == "v1" || prefix == "v2" {
		prefix = ""
	}
	have, want := strings.Split(reference.Domain(image), "."), strings.Split(host, ".")
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	full := reference.Path(image)
	return prefix == "" || full == prefix || strings.HasPrefix(full, prefix+"/")
}

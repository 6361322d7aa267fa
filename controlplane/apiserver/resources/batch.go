package resources

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones of CronJobs, on machines that have none

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func batch() []*descriptor.Resource { return []*descriptor.Resource{jobs(), cronJobs()} }

func jobs() *descriptor.Resource {
	return kind[batchv1.Job, batchv1.JobList]("Job", descriptor.Resource{
		GroupVersion: batchv1.SchemeGroupVersion, Categories: []string{"all"}, Namespaced: true, Generation: true, Status: true,
		Default:        descriptor.Each(func(j *batchv1.Job) { defaultJobSpec(&j.Spec) }),
		PrepareCreate:  descriptor.Prepare(generateJobSelector),
		Validate:       descriptor.Check(validateJob),
		ValidateUpdate: descriptor.CheckUpdate(validateJobUpdate),
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"status.successful": fmt.Sprint(o.(*batchv1.Job).Status.Succeeded)}
		},
		Columns: append([]descriptor.Column{
			{Name: "Status", Cell: descriptor.Cell(jobStatus)},
			{Name: "Completions", Cell: descriptor.Cell(func(j *batchv1.Job) string {
				switch {
				case j.Spec.Completions != nil:
					return fmt.Sprintf("%d/%d", j.Status.Succeeded, *j.Spec.Completions)
				case j.Spec.Parallelism != nil && *j.Spec.Parallelism > 1:
					return fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *j.Spec.Parallelism)
				}
				return fmt.Sprintf("%d/1", j.Status.Succeeded)
			})},
			{Name: "Duration", Cell: descriptor.Cell(func(j *batchv1.Job) string {
				switch {
				case j.Status.StartTime == nil:
					return ""
				case j.Status.CompletionTime == nil:
					return duration.HumanDuration(time.Since(j.Status.StartTime.Time))
				}
				return duration.HumanDuration(j.Status.CompletionTime.Sub(j.Status.StartTime.Time))
			})},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			j := o.(*batchv1.Job)
			return &j.Spec.Template, j.Spec.Selector
		})...),
	})
}

func defaultJobSpec(s *batchv1.JobSpec) {
	// Neither set means one completion; parallelism alone means a work queue.
	if s.Completions == nil && s.Parallelism == nil {
		set(&s.Completions, int32(1))
	}
	set(&s.Parallelism, int32(1))
	if s.BackoffLimit == nil {
		limit := int32(6)
		if s.BackoffLimitPerIndex != nil {
			limit = 1<<31 - 1
		}
		s.BackoffLimit = &limit
	}
	set(&s.CompletionMode, batchv1.NonIndexedCompletion)
	set(&s.Suspend, false)
	if s.PodReplacementPolicy == nil {
		policy := batchv1.TerminatingOrFailed
		if s.PodFailurePolicy != nil {
			policy = batchv1.Failed
		}
		s.PodReplacementPolicy = &policy
	}
	set(&s.ManualSelector, false)
	defaultPodSpec(&s.Template.Spec)
}

// generateJobSelector ties a Job to its pods by its UID, unless the user selects by hand.
func generateJobSelector(j *batchv1.Job) {
	if j.Spec.ManualSelector != nil && *j.Spec.ManualSelector {
		return
	}
	if j.Spec.Template.Labels == nil {
		j.Spec.Template.Labels = map[string]string{}
	}
	for _, prefix := range []string{"", "batch.kubernetes.io/"} {
		j.Spec.Template.Labels[prefix+"controller-uid"] = string(j.UID)
		j.Spec.Template.Labels[prefix+"job-name"] = j.Name
	}
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	j.Spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(j.UID)
}

func validateJob(j *batchv1.Job) field.ErrorList {
	errs := validateJobSpec(&j.Spec, field.NewPath("spec"))
	p := field.NewPath("spec")
	if j.Spec.Selector == nil {
		return append(errs, field.Required(p.Child("selector"), ""))
	}
	errs = append(errs, metav1validation.ValidateLabelSelector(j.Spec.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(labels.Set(j.Spec.Template.Labels)) {
		errs = append(errs, field.Invalid(p.Child("template", "metadata", "labels"), j.Spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	return errs
}

func validateJobSpec(s *batchv1.JobSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, v := range map[string]*int32{"parallelism": s.Parallelism, "completions": s.Completions, "backoffLimit": s.BackoffLimit, "ttlSecondsAfterFinished": s.TTLSecondsAfterFinished, "maxFailedIndexes": s.MaxFailedIndexes, "backoffLimitPerIndex": s.BackoffLimitPerIndex} {
		if v != nil {
			errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*v), p.Child(name))...)
		}
	}
	if s.ActiveDeadlineSeconds != nil {
		errs = append(errs, apivalidation.ValidateNonnegativeField(*s.ActiveDeadlineSeconds, p.Child("activeDeadlineSeconds"))...)
	}
	indexed := false
	if s.CompletionMode != nil {
		errs = append(errs, oneOf(*s.CompletionMode, p.Child("completionMode"), batchv1.NonIndexedCompletion, batchv1.IndexedCompletion)...)
		indexed = *s.CompletionMode == batchv1.IndexedCompletion
	}
	if indexed {
		if s.Completions == nil {
			errs = append(errs, field.Required(p.Child("completions"), fmt.Sprintf("when completion mode is %s", batchv1.IndexedCompletion)))
		}
		if s.Parallelism != nil && *s.Parallelism > maxParallelIndexes {
			errs = append(errs, field.Invalid(p.Child("parallelism"), *s.Parallelism, fmt.Sprintf("must be less than or equal to %d when completion mode is %s", maxParallelIndexes, batchv1.IndexedCompletion)))
		}
	} else if s.BackoffLimitPerIndex != nil {
		errs = append(errs, field.Invalid(p.Child("backoffLimitPerIndex"), *s.BackoffLimitPerIndex, "requires indexed completion mode"))
	}
	if s.MaxFailedIndexes != nil {
		switch {
		case s.BackoffLimitPerIndex == nil:
			errs = append(errs, field.Required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
		case s.Completions != nil && *s.MaxFailedIndexes > *s.Completions:
			errs = append(errs, field.Invalid(p.Child("maxFailedIndexes"), *s.MaxFailedIndexes, "must be less than or equal to completions"))
		}
	}
	if r := s.PodReplacementPolicy; r != nil {
		errs = append(errs, oneOf(*r, p.Child("podReplacementPolicy"), batchv1.Failed, batchv1.TerminatingOrFailed)...)
		if s.PodFailurePolicy != nil && *r == batchv1.TerminatingOrFailed {
			errs = append(errs, field.NotSupported(p.Child("podReplacementPolicy"), *r, []batchv1.PodReplacementPolicy{batchv1.Failed}))
		}
	}
	tp := p.Child("template")
	errs = append(errs, validatePodTemplate(&s.Template, tp)...)
	switch rp := tp.Child("spec", "restartPolicy"); s.Template.Spec.RestartPolicy {
	case corev1.RestartPolicyAlways:
		errs = append(errs, field.Required(rp, fmt.Sprintf("valid values: %q, %q", corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)))
	case corev1.RestartPolicyOnFailure:
		if s.PodFailurePolicy != nil {
			errs = append(errs, field.Invalid(rp, s.Template.Spec.RestartPolicy, fmt.Sprintf("only %q is supported when podFailurePolicy is specified", corev1.RestartPolicyNever)))
		}
	}
	return errs
}

// maxParallelIndexes bounds what a Job's status can tell of its indexes (KEP-2214).
const maxParallelIndexes = 100_000

func validateJobUpdate(j, old *batchv1.Job) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	if !(j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion) {
		errs = append(errs, apivalidation.ValidateImmutableField(j.Spec.Completions, old.Spec.Completions, p.Child("completions"))...)
	}
	errs = append(errs, apivalidation.ValidateImmutableField(j.Spec.Selector, old.Spec.Selector, p.Child("selector"))...)
	errs = append(errs, apivalidation.ValidateImmutableField(j.Spec.CompletionMode, old.Spec.CompletionMode, p.Child("completionMode"))...)
	t, oldT := j.Spec.Template.DeepCopy(), old.Spec.Template.DeepCopy()
	if old.Spec.Suspend != nil && *old.Spec.Suspend && old.Status.StartTime == nil {
		// A Job that has not started may still be told where to run (KEP-2926).
		oldT.Labels, oldT.Annotations = t.Labels, t.Annotations
		oldT.Spec.NodeSelector, oldT.Spec.Affinity, oldT.Spec.Tolerations, oldT.Spec.SchedulingGates = t.Spec.NodeSelector, t.Spec.Affinity, t.Spec.Tolerations, t.Spec.SchedulingGates
	}
	return append(errs, apivalidation.ValidateImmutableField(*t, *oldT, p.Child("template"))...)
}

func jobStatus(j *batchv1.Job) string {
	has := func(t batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == t && c.Status == corev1.ConditionTrue {
				return true
			}
		}
		return false
	}
	switch {
	case has(batchv1.JobComplete):
		return "Complete"
	case has(batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case has(batchv1.JobSuspended):
		return "Suspended"
	case has(batchv1.JobFailureTarget):
		return "FailureTarget"
	case has(batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func cronJobs() *descriptor.Resource {
	return kind[batchv1.CronJob, batchv1.CronJobList]("CronJob", descriptor.Resource{
		GroupVersion: batchv1.SchemeGroupVersion, ShortNames: []string{"cj"}, Categories: []string{"all"}, Namespaced: true, Generation: true, Status: true,
		Default: descriptor.Each(func(c *batchv1.CronJob) {
			fill(&c.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
			set(&c.Spec.Suspend, false)
			set(&c.Spec.SuccessfulJobsHistoryLimit, int32(3))
			set(&c.Spec.FailedJobsHistoryLimit, int32(1))
			defaultPodSpec(&c.Spec.JobTemplate.Spec.Template.Spec)
		}),
		Validate: descriptor.Check(func(c *batchv1.CronJob) field.ErrorList {
			p := field.NewPath("spec")
			var errs field.ErrorList
			errs = append(errs, validateSchedule(c.Spec.Schedule, p.Child("schedule"))...)
			// The Job controller appends eleven characters to make a Job's name.
			if len(c.Name) > validation.DNS1035LabelMaxLength-11 {
				errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters"))
			}
			for name, v := range map[string]*int32{"successfulJobsHistoryLimit": c.Spec.SuccessfulJobsHistoryLimit, "failedJobsHistoryLimit": c.Spec.FailedJobsHistoryLimit} {
				if v != nil {
					errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*v), p.Child(name))...)
				}
			}
			if d := c.Spec.StartingDeadlineSeconds; d != nil {
				errs = append(errs, apivalidation.ValidateNonnegativeField(*d, p.Child("startingDeadlineSeconds"))...)
			}
			if z := c.Spec.TimeZone; z != nil {
				if _, err := time.LoadLocation(*z); err != nil || *z == "" || strings.EqualFold(*z, "Local") {
					errs = append(errs, field.Invalid(p.Child("timeZone"), *z, "must be a name of the IANA Time Zone database"))
				}
			}
			errs = append(errs, oneOf(c.Spec.ConcurrencyPolicy, p.Child("concurrencyPolicy"), batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)...)
			return append(errs, validateJobSpec(&c.Spec.JobTemplate.Spec, p.Child("jobTemplate", "spec"))...)
		}),
		Columns: append([]descriptor.Column{
			{Name: "Schedule", Cell: descriptor.Cell(func(c *batchv1.CronJob) string { return c.Spec.Schedule })},
			{Name: "Timezone", Cell: descriptor.Cell(func(c *batchv1.CronJob) string {
				if c.Spec.TimeZone == nil {
					return "<none>"
				}
				return *c.Spec.TimeZone
			})},
			{Name: "Suspend", Cell: descriptor.Cell(func(c *batchv1.CronJob) string { return boolTitle(c.Spec.Suspend) })},
			{Name: "Active", Type: "integer", Cell: descriptor.Cell(func(c *batchv1.CronJob) int64 { return int64(len(c.Status.Active)) })},
			{Name: "Last Schedule", Cell: descriptor.Cell(func(c *batchv1.CronJob) string {
				if c.Status.LastScheduleTime == nil {
					return "<none>"
				}
				return descriptor.Since(*c.Status.LastScheduleTime)
			})},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			s := &o.(*batchv1.CronJob).Spec.JobTemplate.Spec
			return &s.Template, s.Selector
		})...),
	})
}

// validateSchedule wants what the CronJob controller can read; the time zone has a field of its own.
func validateSchedule(text string, p *field.Path) field.ErrorList {
	switch {
	case text == "":
		return field.ErrorList{field.Required(p, "")}
	case strings.Contains(text, "TZ"):
		return field.ErrorList{field.Invalid(p, text, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")}
	}
	if _, err := cron.ParseStandard(text); err != nil {
		return field.ErrorList{field.Invalid(p, text, err.Error())}
	}
	return nil
}

func boolTitle(b *bool) string {
	if b != nil && *b {
		return "True"
	}
	return "False"
}
